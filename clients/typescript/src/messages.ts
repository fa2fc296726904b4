/** Operations, order events and control messages as docs/sending.md has them, and their bytes. Pure. */

import { createHash } from "node:crypto";

export const MAX_RECORD_BYTES = 1024 * 1024; // data and partition key: the default of Kinesis, and the quota of SQS
const MAX_KEY_CHARS = 256; // API_PutRecordsRequestEntry
const GROUP = /^[!-~]{1,128}$/; // a MessageGroupId: API_SendMessage

export type PartitionKeyRule = "resource-type" | "tenant";

export type Document = Readonly<Record<string, unknown>>;

/** One location of one business. */
export interface Tenant {
  businessId: string;
  locationId: string;
}

interface OperationBase extends Tenant {
  resourceType: string;
  timestamp?: string; // RFC 3339; else the time of queueing
  requestId?: string; // only to send again what was not sent
  traceparent?: string;
}

/** `create` stores `data`; without `resourceId` the id is the `requestId`. */
export interface Create extends OperationBase {
  operation: "create";
  resourceId?: string;
  data: Document;
}

/** `update` replaces the document by `data`, `patch` merges `data` into it by RFC 7396. */
export interface Change extends OperationBase {
  operation: "update" | "patch";
  resourceId: string;
  data: Document;
}

export interface Use extends OperationBase {
  operation: "delete" | "read";
  resourceId: string;
}

export interface List extends OperationBase {
  operation: "list";
  filters?: Document;
  pagination?: { page?: number; limit?: number };
}

export type Operation = Create | Change | Use | List;

interface OrderBase extends Tenant {
  deduplicationId?: string;
}

/** Without `orderId` the id of the order is the `deduplicationId`. */
export interface OrderCreate extends OrderBase {
  type: "CREATE";
  orderId?: string;
  data: Document;
}

export interface OrderUpdate extends OrderBase {
  type: "UPDATE";
  orderId: string;
  data: Document;
}

export interface OrderDelete extends OrderBase {
  type: "DELETE";
  orderId: string;
}

export type OrderEvent = OrderCreate | OrderUpdate | OrderDelete;

/** A `businessType` is `dental`, `gym`, `hotel`, or a type of the shard's own. */
export type ControlMessage = { timestamp?: string } & (
  | (Tenant & { messageType: "SHARD_CREATION"; businessType: string })
  | (Tenant & { messageType: "SHARD_DESTRUCTION"; action: "destroy" })
  | { messageType: "SHARD_DESTRUCTION"; action: "destroy_all"; businessId: string; locationId?: never }
  | (Tenant & {
      messageType: "UPDATE_RESOURCE_ID";
      resourceType: string;
      oldResourceId: string;
      newResourceId: string;
      additionalData?: Document;
    })
  | (Tenant & {
      messageType: "ADMIN_ACCOUNT_CREATION";
      businessType: string;
      adminEmail: string;
      adminUserId: string;
    })
);

// The members of each kind that are required; those that are objects; and the texts with their longest.
const TENANT = ["businessId", "locationId"];
const REQUIRED: Readonly<Record<string, readonly string[]>> = {
  create: [...TENANT, "resourceType", "data"],
  update: [...TENANT, "resourceType", "resourceId", "data"],
  patch: [...TENANT, "resourceType", "resourceId", "data"],
  delete: [...TENANT, "resourceType", "resourceId"],
  read: [...TENANT, "resourceType", "resourceId"],
  list: [...TENANT, "resourceType"],
  CREATE: [...TENANT, "data"],
  UPDATE: [...TENANT, "orderId", "data"],
  DELETE: [...TENANT, "orderId"],
  SHARD_CREATION: [...TENANT, "businessType"],
  SHARD_DESTRUCTION: ["businessId"],
  UPDATE_RESOURCE_ID: [...TENANT, "resourceType", "oldResourceId", "newResourceId"],
  ADMIN_ACCOUNT_CREATION: [...TENANT, "businessType", "adminEmail", "adminUserId"],
};
const OBJECTS = ["data", "filters", "pagination", "additionalData"];
const SHORT = [...TENANT, "resourceType", "requestId", "deduplicationId"];
const LONG = ["resourceId", "orderId", "oldResourceId", "newResourceId", "adminUserId"];
// The pattern of the worker's schemas.
const TIME = /^(?!0000|0001-01-01[^+]*\+(?!00:00)|9999-12-31[Tt][^-]*-(?!00:00))([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)([Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])?)?(?![\s\S])/;

/** The bytes of a message, or why the worker would refuse it. */
export type Encoded = { readonly data: Buffer; readonly sizeBytes: number } | { readonly problem: string };

/** Returns the bytes of a message, whose kind is that member; its size includes `key`. */
export function encode(message: Readonly<Record<string, unknown>>, kindName: string, key = ""): Encoded {
  const kind = message[kindName];
  const required = typeof kind === "string" && Object.hasOwn(REQUIRED, kind) ? REQUIRED[kind] : undefined;
  if (required === undefined) {
    return { problem: `expected a known ${kindName}, got ${String(kind)}` };
  }
  const action = message["action"];
  if (kind === "SHARD_DESTRUCTION" && action !== "destroy" && action !== "destroy_all") {
    return { problem: `action: expected destroy or destroy_all, got ${String(action)}` };
  }
  const ofAction = action === "destroy" ? ["locationId"] : [];
  const missing = [...required, ...ofAction].find((name) => (message[name] ?? null) === null);
  if (missing !== undefined) {
    return { problem: `expected a member ${missing} of ${String(kind)}, got none` };
  }
  for (const [name, value] of Object.entries(message)) {
    const maxChars = SHORT.includes(name) ? 128 : LONG.includes(name) ? 256 : 0;
    if ((value ?? null) === null) {
      continue;
    }
    if (maxChars > 0 && !isText(value, maxChars)) {
      return { problem: `${name}: expected text of 1 to ${maxChars} characters without U+0000 and lone surrogates` };
    }
    if (OBJECTS.includes(name) && (typeof value !== "object" || Array.isArray(value))) {
      return { problem: `${name}: expected an object` };
    }
  }
  const timestamp = message["timestamp"];
  if (typeof timestamp === "number" || (typeof timestamp === "string" && !TIME.test(timestamp))) {
    return { problem: "timestamp: expected a time of RFC 3339, such as 2026-01-31T09:00:00Z, or a date" };
  }
  if (String(message["requestId"] ?? message["deduplicationId"] ?? "").startsWith("simplu:")) {
    return { problem: "expected an id of your own, got one that begins with simplu:" };
  }
  let text: string;
  try {
    text = JSON.stringify(message);
  } catch (error) {
    return { problem: `expected JSON: ${String(error)}` }; // a cycle, or a BigInt
  }
  if (text.includes("null") && hasFalseNull(message)) {
    return { problem: "expected JSON: got a number that is not finite, or an invalid date" };
  }
  const data = Buffer.from(text);
  const sizeBytes = data.length + Buffer.byteLength(key);
  if (sizeBytes > MAX_RECORD_BYTES) {
    return { problem: `expected at most ${MAX_RECORD_BYTES} bytes with the partition key, got ${sizeBytes}` };
  }
  return { data, sizeBytes };
}

/**
 * Returns whether JSON has null for a number that is not finite, or for an invalid date: in a patch it would remove the
 * member.
 */
function hasFalseNull(message: Readonly<Record<string, unknown>>): boolean {
  let isFound = false;
  JSON.stringify(message, function (this: Record<string, unknown>, name: string, value: unknown) {
    // In `this` a date still is one.
    isFound ||= (typeof value === "number" && !Number.isFinite(value)) || (value === null && this[name] !== null);
    return value;
  });
  return isFound;
}

function isText(value: unknown, maxChars: number): boolean {
  return typeof value === "string" && value !== "" && [...value].length <= maxChars && !/[\0\p{Surrogate}]/u.test(value);
}

/** Returns the partition key of an operation by the worker's rule: all operations of a resource share it. */
export function partitionKey(
  message: Readonly<Record<string, unknown>>,
  rule: PartitionKeyRule = "resource-type",
): string {
  const tenant = `${message["businessId"]}-${message["locationId"]}`;
  const key = rule === "tenant" ? tenant : `${tenant}-${message["resourceType"]}`;
  return [...key].length <= MAX_KEY_CHARS ? key : digest(key);
}

/** Returns the text as SQS allows the id of a group, or a digest of it. */
export function queueId(text: string): string {
  return GROUP.test(text) ? text : digest(text);
}

function digest(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}

/** Returns a UUID of version 7 (RFC 9562): the time in milliseconds, and 10 random bytes. */
export function uuid7(ms: number, random: Uint8Array): string {
  const bytes = Buffer.alloc(16);
  bytes.writeUIntBE(ms, 0, 6);
  bytes.set(random, 6);
  bytes[6] = 0x70 | (bytes[6]! & 0x0f);
  bytes[8] = 0x80 | (bytes[8]! & 0x3f);
  const text = bytes.toString("hex");
  return [text.slice(0, 8), text.slice(8, 12), text.slice(12, 16), text.slice(16, 20), text.slice(20)].join("-");
}
