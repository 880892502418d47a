// Numbers, times and states in the operator's words.
export function bytes(n) {
  if (!(n >= 1024)) return Math.round(n || 0) + " B";
  const units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
  let i = -1;
  do { n /= 1024; i++; } while (n >= 1024 && i < units.length - 1);
  return (n < 10 ? n.toFixed(1) : Math.round(n)) + " " + units[i];
}

export function seconds(s) {
  if (!(s > 0)) return "0 s";
  if (s < 0.01) return (s * 1000).toFixed(1) + " ms";
  if (s < 1) return Math.round(s * 1000) + " ms";
  if (s < 10) return s.toFixed(1) + " s";
  if (s < 120) return Math.round(s) + " s";
  if (s < 7200) return Math.round(s / 60) + " min";
  if (s < 172800) return Math.round(s / 3600) + " h";
  return Math.round(s / 86400) + " days";
}

export const rtt = (us) => (us > 0 ? (us < 10000 ? (us / 1000).toFixed(2) : Math.round(us / 1000)) + " ms" : "–");
export const count = (n) => Number(n || 0).toLocaleString("en");
export const clock = (t) => new Date(t).toLocaleTimeString("en-GB");
export const day = (t) => { const d = new Date(t); return d.toLocaleDateString("sv") + " " + clock(t); };

const stateLevels = {
  "in sync": "good", streaming: "good", active: "good", standby: "good",  left: "warn", empty: "warn",
  standalone: "none", idle: "none", reserved: "warn", draining: "none", starting: "warn", suspended: "warn", resync: "warn", "catch-up": "warn",
  connecting: "warn", handshake: "warn", suspect: "warn", "resync held": "warn", "device full": "bad", "device error": "bad", waiting: "warn",
  degraded: "bad", failed: "bad", fenced: "bad", damaged: "bad", down: "bad", refused: "bad", backoff: "bad", dialing: "warn", authenticating: "warn",
};
export const level = (state) => stateLevels[state] || "none";
