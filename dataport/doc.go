// Package dataport carries opaque messages between two hosts over several TCP connections at once.
//
// A Node is the process: its key, listeners and random incarnation. A client registers by name (Registration) and opens
// a Port to a target, an address list of one host, with an ordered list of backups. A Port has one Session at a time: one
// incarnation pair, ordered exactly-once delivery in both directions, over whatever paths are up. On the other host the
// session belongs to the client of the same name, without a Port.
//
//	Send ─► sending (window, messages, frames) ─► Scheduler ─► path: writer ═ TCP ═ reader ─► receiving (reorder, messages)
//	  ▲ receipt: consumed ◄──────────────────────── any frame of any path ◄──────────────────────── OnMessage returned
//
// What holds, whatever happens to paths:
//
//   - A message is handed to the peer's client once, whole, in the order of Send, or its receipt fails with
//     ErrSessionLost. A receipt that succeeds proves that the peer's OnMessage has returned.
//   - A frame stays with its sender until the peer's port has acknowledged it. When its path dies or is suspect and
//     another one is active it goes out again there; duplicates are dropped by sequence.
//   - A path that is slow but not silent holds up nothing: see rescue.go.
//   - A session ends for good: unreachable, closed, switched away, peer restarted. Nothing resumes silently.
//   - Bounded: what is held for the peer (SendWindowBytes; of replies twice that and one message), what the peer may send
//     ahead (ReceiveWindowBytes, and one message; its memory up to twice that, for fragments are read to their places in
//     messages of which no more may have come, see place.go), events, sessions, paths, connections before authentication (of one host, and of
//     all; a flood keeps no peer out, see door.go), every length before it is allocated.
//   - The port owns the parts of a message until its receipt is done, and reads them no more after that.
//   - A message may go packed (PortConfig.Compression, each side for what it sends): each for itself, only when that is
//     shorter, only by what the peer's hello says it unpacks. All sizes and limits of the API are those of plain messages;
//     what a peer's message unfolds to is bounded by MaxMessageBytes before it is allocated. Otherwise the session ends.
//   - A bandwidth limit (PortConfig.Bandwidth, Port.SetBandwidth) holds back messages and replies, first and again, over
//     all paths together; heartbeats and acknowledgements are free, so that no limit is so low as to look like a fault.
//   - Over TLS a connection becomes a path only of a peer whose key is pinned, and of the session whose secret it proves
//     on that very connection. Keys may change meanwhile (SetPeers, SetKey): sessions with a key that is gone end at once.
//   - Manual: nothing goes to a backup before Switch. Auto: the next backup after TargetUnreachable. Never back by itself.
//
// The order of events, per registration (inbound sessions have Port nil and no target events):
//
//	connecting          PathUp SessionUp PathUp…
//	path reset          PathDown … PathUp (same path id)
//	path silent         PathSuspect, then PathUp (heard again) or PathDown … PathUp
//	RemovePath          PathIsDraining, PathDown (the place is free)
//	all paths silent    PathSuspect… PathDown… SessionDown TargetUnreachable, and in Auto: Switching PathUp Switched SessionUp
//	never reached       [PeerRefused] TargetUnreachable
//	Switch              Switching [SessionDown] PathUp Switched SessionUp
//	peer restarted      PathDown… PeerRestarted SessionDown PathUp SessionUp
//	address announced   PathUp; not any more: PathIsDraining PathDown; one that never answers: nothing
//	fenced              [SessionDown] Fenced, then nothing until SetGeneration: [PathUp SessionUp]
//	own generation      SessionDown PathUp SessionUp (so that the peer hears of it)
//	Close               [SessionDown] PortClosed
//
// Where fewer paths than there are carry data (ActivePaths), with a standby:
//
//	connecting          PathUp SessionUp PathIsStandby…
//	path reset          PathDown, PathUp (another one takes over) … PathIsStandby (the one that was lost)
//	path silent         PathSuspect, PathUp (another one), then PathIsStandby (heard again) or PathDown … PathIsStandby
//	standby silent      PathSuspect, then PathIsStandby (heard again) or PathDown … PathIsStandby
//	RemovePath          PathUp (another one), PathIsDraining, PathDown
//
// The side that accepts has the same events. Where two paths are concerned, PathUp of the other one may come first
// there: the word on that path overtakes the loss of this one.
//
// Replies go in the order of messages and by their credit. So OnMessage must not wait for one of the same session: Call
// with its ctx is an error at once (ErrCallInOnMessage), for under full load both sides would wait for good.
//
// SessionDown closes the paths that are left without a PathDown of their own. OnMessage and OnEvent run on different
// goroutines: a message may be seen before the SessionUp of its session.
//
// Liveness: every frame, and every piece of a big one, is a sign of life. A side that hears nothing on a path says so on
// it (flagDeaf), so a path that is dead one way is suspect on both. A heartbeat that is itself late (the process was
// stopped, the machine starved) gives the peer the same time again before it is judged, and what the peer said of its
// silence meanwhile does not count (ear.go).
//
// Standby: the side that dials elects who carries data (election.go) and asks the other one to keep off the rest
// (flagStandby). An asked side sends there all the same when it has nothing else. Where one path is well, one is active.
//
// Reserved: a path that was up and is lost keeps its place in the session, on both sides: id, counters, one of MaxPaths.
// It is given back when the path is up again, is removed, or the session ends. Only who proves the session's secret comes in.
//
// Draining: a path is removed without a loss or a resend, as long as it works (drain.go).
//
// Addresses: a node tells its peers where it listens, at every connection and whenever that changes, for a wildcard the
// addresses of its host. A port with UseAnnounced has a path to each, and removes it when the address goes; those that
// were configured stay. What to believe of a peer's list, and what its failures mean, is in announce.go.
//
// Fencing: a client may have a generation, within a history. Who has seen a higher one refuses a lower one, at once and
// before any message: a port that is fenced sends nothing, dials nothing and switches nowhere (fence.go).
//
// The files: frame.go and hello.go are the formats, secret.go binds paths to their session, path_state.go and
// port_state.go the state machines; session.go with its halves session_send.go and session_recv.go, path.go the
// connection's two goroutines, record.go what stays of a path, election.go which paths carry data, drain.go how one is
// removed, ear.go what to believe of a peer that hears nothing, meter.go what a path delivers, scheduler.go who gets the
// next frame, rescue.go what goes elsewhere since it is stuck, place.go where fragments are read to; port.go the handle,
// port_run.go how it dials, joins, gives up and switches; node.go the process and its clients, listen.go where it listens
// and what it knows of its host, welcome.go what it accepts, door.go whom of those that have not said who they are; probe.go asks a node who it is;
// announce.go and fence.go as above; keys.go and keyring.go who may; compress.go the format and codec of packed
// messages, autopack.go when it pays to pack; bandwidth.go the limit.
//
// # Speed
//
// The sockets of paths are those of the package socket: a reader of bulk data does not wait in the runtime's poller (a quarter less CPU for the
// receiver). Large buffers are given out again last first, from the caches (buffers.go: a fifth less). A fast path may have more unsent in its socket
// (meter.go, notSentLow: a fifth less CPU for the sender). Together, 1 MiB messages over one path: 0.70 × a plain connection before, 0.89 after.
//
// # What was tried and is not here
//
// 1 MiB messages over one path, by turns on two cores; each changed nothing beyond the noise. Payload and next header by two calls instead of readv;
// batches of 256 KiB and of 1 MiB; SO_RCVLOWAT for the rest of a payload; acknowledging a message 0.5 or 2 ms after it was consumed while more is on
// its way; system calls that the scheduler is not told of. A system call of its own for each large payload, as blockdev/nbd sends its
// replies over TCP, is a quarter slower. A source that waits warm for its acknowledgements is a fifth slower.
package dataport
