// Lag and rate of each stream shard, as this page has seen them.
const STEP_MS = 5000;
const TRACE_POINTS = 60;

export class Traces {
  constructor() {
    this.byStreamShard = new Map();
    this.at = 0;
  }

  // Note lag and rate of each stream shard, a point every few seconds; those that are gone are dropped.
  note(streamShards, now) {
    if (now - this.at < STEP_MS) return;
    this.at = now;
    const before = this.byStreamShard;
    this.byStreamShard = new Map(streamShards.map(({ streamShard, lagSeconds, recordsPerSecond }) => {
      const { lag, rate } = before.get(streamShard) ?? { lag: [], rate: [] };
      const appended = (points, value) => [...points, value ?? null].slice(-TRACE_POINTS);
      return [streamShard, { lag: appended(lag, lagSeconds), rate: appended(rate, recordsPerSecond) }];
    }));
  }
}
