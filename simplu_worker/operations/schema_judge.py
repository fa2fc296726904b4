"""Judge documents by the JSON Schemas of their resource types (draft 2020-12), in bounded time. Pure.

What is found is told in words of the schema; no value of a document is among them.

A schema refers to itself alone, so nothing is fetched, and no reference leads back: with two that do, a document would
take time exponential in its depth. With all references followed a schema has at most SIZE_MAX subschemas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import unquote

import msgspec

from simplu_worker.errors import WorkerError
from simplu_worker.operations.business_types import BusinessType, ResourceType
from simplu_worker.operations.json_record import is_nested_deeper
from simplu_worker.vocabulary import Validation

SCHEMA_MAX_BYTES: Final = 256 * 1024  # of JSON text
SCHEMA_MAX_DEPTH: Final = 100  # of JSON text
PATTERNS_MAX: Final = 100  # a compiled pattern takes up to a megabyte
SIZE_MAX: Final = 10_000  # subschemas, with all references followed
REFERENCES_MAX: Final = 100  # one behind the other
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


class InvalidSchemaError(WorkerError):
    """A schema that cannot be used; the message begins with the place in it."""


_DEFINITIONS: Final = frozenset({"$defs", "definitions"})
_SEVERAL: Final = _DEFINITIONS | {
    *("allOf", "anyOf", "oneOf", "dependentSchemas", "dependencies", "properties", "prefixItems", "patternProperties")
}
_ONE: Final = frozenset(
    {
        *("not", "if", "then", "else", "propertyNames", "contains"),
        *("additionalProperties", "unevaluatedProperties", "items", "unevaluatedItems"),
    }
)
_PATTERNS: Final = frozenset({"pattern", "patternProperties"})
_NAMED: Final = frozenset({"$anchor", "$dynamicAnchor", "$dynamicRef"})


def check_bounds(schema: Any) -> frozenset[str]:
    """Return the names of members that *schema* has properties for. Raises `InvalidSchemaError`."""
    text = msgspec.json.encode(schema)
    if len(text) > SCHEMA_MAX_BYTES:
        raise InvalidSchemaError(f"#: expected at most {SCHEMA_MAX_BYTES} bytes of JSON, got {len(text)}")
    if is_nested_deeper(text, SCHEMA_MAX_DEPTH):
        raise InvalidSchemaError(f"#: expected at most {SCHEMA_MAX_DEPTH} levels, got more")
    survey = _Survey()
    survey.add(schema, "")
    for pointer in survey.inner:
        survey.measure(pointer, [])
    return frozenset(survey.names)


def pointer_to(pointer: str, *parts: str | int) -> str:
    """Return the JSON pointer that leads from *pointer* on to *parts*."""
    return pointer + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


class _Survey:
    def __init__(self) -> None:
        self.names: set[str] = set()
        self.inner: dict[str, list[str]] = {}  # pointers to what a value is compared with besides, by pointer
        self._references: dict[str, str] = {}  # by pointer
        self._sizes: dict[str, int] = {}  # with all that is compared
        self._pattern_count = 0

    def add(self, schema: Any, pointer: str) -> str:
        self.inner[pointer] = []
        if isinstance(schema, dict):
            self._check_identity(schema, pointer)
            for keyword, value in schema.items():
                self._add_keyword(pointer, pointer_to(pointer, keyword), keyword, value)
        return pointer

    def _check_identity(self, schema: Mapping[str, Any], pointer: str) -> None:
        dialect = schema.get("$schema", DIALECT)
        if dialect not in (DIALECT, DIALECT + "#"):
            raise InvalidSchemaError(f"#{pointer}/$schema: expected {DIALECT}, got another dialect; leave it out")
        for keyword in _NAMED.union(["$id"] if pointer else []).intersection(schema):
            raise InvalidSchemaError(f"#{pointer}/{keyword}: expected none; use $ref with a place such as #/$defs/name")

    def _add_keyword(self, owner: str, pointer: str, keyword: str, value: Any) -> None:
        if keyword == "$ref":
            self._references[owner] = unquote(value[1:]) if isinstance(value, str) and value[:1] == "#" else "none"
        elif keyword in _ONE:
            self.inner[owner].append(self.add(value, pointer))
        elif keyword in _SEVERAL:
            added = [self.add(one, pointer_to(pointer, key)) for key, one in _items(value)]
            self.inner[owner] += [] if keyword in _DEFINITIONS else added
        if keyword == "properties" and isinstance(value, dict):
            self.names.update(value)
        if keyword in _PATTERNS:
            self._pattern_count += len(value) if isinstance(value, dict) else 1
            if self._pattern_count > PATTERNS_MAX:
                raise InvalidSchemaError(f"#{pointer}: expected at most {PATTERNS_MAX} patterns in a schema, got more")

    def measure(self, pointer: str, behind: Sequence[str]) -> int:
        """Return how many subschemas a value may be compared with; *behind* are those that lead to this one."""
        if pointer in self._sizes:
            return self._sizes[pointer]
        if pointer in behind:
            raise InvalidSchemaError(
                f"#{pointer}: expected no reference that leads back, got one; write out the levels that documents have"
            )
        if len(behind) > SCHEMA_MAX_DEPTH + REFERENCES_MAX:
            raise InvalidSchemaError(
                f"#{pointer}: expected at most {REFERENCES_MAX} references behind each other, got more"
            )
        inner = self.inner[pointer] + ([self._target_of(pointer)] if pointer in self._references else [])
        size = self._sizes[pointer] = 1 + sum(self.measure(one, [*behind, pointer]) for one in inner)
        if size > SIZE_MAX:
            raise InvalidSchemaError(
                f"#{pointer}: expected at most {SIZE_MAX} subschemas with all references followed, got {size}; have"
                " fewer references"
            )
        return size

    def _target_of(self, pointer: str) -> str:
        target = self._references[pointer]
        if target not in self.inner:
            raise InvalidSchemaError(
                f"#{pointer}/$ref: expected the place of a subschema of the same schema, such as #/$defs/name, got"
                " another reference; nothing is fetched"
            )
        return target


def _items(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, dict):
        yield from ((key, one) for key, one in value.items() if isinstance(one, dict | bool))
    elif isinstance(value, list):
        yield from enumerate(value)


if TYPE_CHECKING:
    from jsonschema_rs import ValidationError

JUDGED_MAX_BYTES: Final = 1024 * 1024  # of a document; more would keep the shard's other operations waiting
# Behind alternatives the library collects every error of all of them, which takes a hundred times as long.
EXPLAINED_MAX_BYTES: Final = 16 * 1024
PATTERN_MAX_BYTES: Final = 1024 * 1024  # of a compiled pattern
SHOWN_MAX_CHARS: Final = 200  # of a value of the schema, and of a problem
ROOT: Final = "#"

Judges: TypeAlias = Mapping[str, "Judge"]  # of one business type, by all names of its resource types

_decode = msgspec.json.Decoder().decode
_decode_exactly = msgspec.json.Decoder(float_hook=Decimal).decode  # numbers that no float has


class Finding(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What is wrong with a document: the place in the schema, what was expected, and the place in the document."""

    schema_path: str
    expected: str
    document_path: str | None = None

    def __str__(self) -> str:
        place = f" at {self.document_path}" if self.document_path else ""
        return f"{self.schema_path}: expected {self.expected}{place}"


TOO_LARGE: Final = Finding(ROOT, f"at most {JUDGED_MAX_BYTES} bytes of JSON")
UNREADABLE: Final = Finding(ROOT, "a document that can be read")
UNFIT: Final = Finding(ROOT, "a document that fits the schema")  # and nothing more is known


class Schema:
    """A compiled schema. Raises `InvalidSchemaError`."""

    def __init__(self, schema: Any) -> None:
        # The library is large, and most workers have no schema.
        from jsonschema_rs import Draft202012Validator, RegexOptions, ValidationError

        self._names = check_bounds(schema)
        self._schema = schema
        text = msgspec.json.encode(schema)
        self._has_alternatives = b'"anyOf"' in text or b'"oneOf"' in text
        self._error_type = ValidationError
        try:
            self._validator = Draft202012Validator(
                schema,
                offline=True,
                validate_formats=False,  # in this draft a format asserts nothing
                pattern_options=RegexOptions(size_limit=PATTERN_MAX_BYTES, dfa_size_limit=PATTERN_MAX_BYTES),
            )
        except BaseException as exc:
            if not _is_of_library(exc):
                raise
            raise InvalidSchemaError(_problem_of(exc)) from None

    def judge(self, document: bytes | msgspec.Raw) -> Finding | None:
        """Return what is wrong with *document*, JSON text within the bounds of documents; None if it fits."""
        if len(document) > JUDGED_MAX_BYTES:
            return TOO_LARGE
        try:
            value = _read(document)
            return None if self._validator.is_valid(value) else self._explain(value, len(document))
        except BaseException as exc:
            if not _is_of_library(exc):
                raise
            return UNREADABLE

    def _explain(self, value: Any, size_bytes: int) -> Finding:
        if self._has_alternatives and size_bytes > EXPLAINED_MAX_BYTES:
            return UNFIT
        try:
            self._validator.validate(value)
        except self._error_type as exc:
            place = _shorten(pointer_to(ROOT, *exc.schema_path))
            is_known = all(isinstance(part, int) or part in self._names for part in exc.instance_path)
            document_path = _shorten(pointer_to("", *exc.instance_path)) if is_known else None
            return Finding(place, _expected_by(exc, self._schema), document_path or None)
        return UNFIT


class Judge(msgspec.Struct, frozen=True):
    """The schema of a resource type, and what a finding leads to."""

    business_type: str
    resource_type: str
    validation: Validation
    schema: Schema

    @property
    def refuses(self) -> bool:
        """Whether a document with a finding is refused."""
        return self.validation is Validation.ENFORCE


def judges_of(business_type: BusinessType) -> tuple[Judges, list[str]]:
    """Return the judges of *business_type*, and the problems of resource types that have none for that."""
    judges: dict[str, Judge] = {}
    problems: list[str] = []
    for resource_type in business_type.resource_types:
        if resource_type.validation is Validation.OFF:
            continue
        try:
            schema = Schema(_schema_of(resource_type))
        except InvalidSchemaError as exc:
            problems.append(f"{resource_type.name}: {exc}")
        else:
            judge = Judge(business_type.name, resource_type.name, resource_type.validation, schema)
            judges |= dict.fromkeys(resource_type.names, judge)
    return judges, problems


def find_schema_problem(schema: Any) -> str | None:
    """Return why *schema* cannot be used, with the place in it; None if it can."""
    try:
        Schema(schema)
    except InvalidSchemaError as exc:
        return str(exc)
    return None


def count_findings(schema: Schema, documents: Iterable[bytes]) -> Counter[str]:
    """Return how many of *documents* have a finding at each place of *schema*."""
    return Counter(found.schema_path for one in documents if (found := schema.judge(one)) is not None)


def _schema_of(resource_type: ResourceType) -> dict[str, Any]:
    if resource_type.schema is None:
        raise InvalidSchemaError(f"{ROOT}: expected a schema for validation {resource_type.validation}, got none")
    return resource_type.schema


def _read(document: bytes | msgspec.Raw) -> Any:
    try:
        return _decode(document)
    except msgspec.ValidationError:  # a number beyond those of a float
        return _decode_exactly(document)


def _is_of_library(exc: BaseException) -> bool:
    return isinstance(exc, ValueError | RecursionError) or type(exc).__name__ == "PanicException"


def _problem_of(exc: BaseException) -> str:
    path: list[str | int] = getattr(exc, "instance_path", [])
    message: str = getattr(exc, "message", str(exc))
    if message.endswith('is not a "regex"'):
        message = "expected a pattern without look-around and back-references that is not too large, got another"
    return f"{pointer_to(ROOT, *path)}: {_shorten(message)}"


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN_MAX_CHARS else text[: SHOWN_MAX_CHARS - 1] + "…"


def _json(value: Any) -> str:
    return _shorten(msgspec.json.encode(value).decode())


def _expected_by(exc: ValidationError, schema: Any) -> str:
    from jsonschema_rs import ValidationErrorKind

    if isinstance(exc.kind, ValidationErrorKind.Required):
        return f"the member {_json(exc.kind.property)}"
    keyword, value = "", schema
    try:
        for part in exc.schema_path:
            keyword, value = str(part), value[part]
    except (KeyError, IndexError, TypeError):
        return UNFIT.expected
    if value is False and not keyword.startswith(("additional", "unevaluated")):
        return "no value here"
    return f"{keyword} {_json(value)}" if keyword else UNFIT.expected
