// Package control is the way in to a running agent: HTTP + JSON over a unix
// socket that only its owner may open (0600), and the Go client of it. The
// command line uses nothing else, so whatever it can do a script can do too:
//
//	curl --unix-socket /run/mirror-agent/vol0.sock http://agent/v1/status
//
//	GET  /v1/status                        mirror.Status
//	GET  /v1/events?after=N                [mirror.Event, …] with a sequence above N
//	GET  /v1/events?after=N&follow=true    the same as a stream, one JSON object a line
//	POST /v1/mode        {"mode": "flush"}            mirror.Status
//	POST /v1/switch      {"to": "backup"}             mirror.Status
//	POST /v1/promote     {"force": false, "nbd": ""}  mirror.PromoteResult
//	                     and "planned": true, "limit_seconds": 30, "dry_run": false
//	POST /v1/failback    {"dry_run": false, "limit_seconds": 30}  mirror.FailbackResult
//	POST /v1/demote      {"dry_run": false}           mirror.DemoteResult
//	POST /v1/suspend     {}                           mirror.Status
//	POST /v1/resume      {}                           mirror.Status
//	POST /v1/path/reset  {"target": "", "id": 1}      mirror.Status
//	POST /v1/path/remove {"target": "", "id": 1}      mirror.Status
//	POST /v1/listen/add     {"address": "HOST:PORT"}  mirror.Status
//	POST /v1/listen/remove  {"address": "HOST:PORT"}  mirror.Status
//	POST /v1/bandwidth   {"limit": "50MB/s"}          mirror.Status
//	POST /v1/verify      {"repair": "", "rate_bytes": 0, "no_yield": false, "direct": false, "resume": false}
//	                                                  mirror.VerifyReport; it runs on
//	POST /v1/verify/stop {}                           mirror.VerifyReport
//	GET  /v1/verify                                   mirror.VerifyReport, with the differences
//	POST /v1/scrub       {}                           mirror.Status
//
// An error is {"error": "why, and what to do"} with a status that tells what
// kind it is: 400 the request makes no sense, 404 and 405 there is no such
// thing, 409 the agent refused, 413 too long, 503 too many at once or the
// agent is ending, 504 it took too long.
//
// Prometheus is served apart from that, by TCP and read-only: MetricsServer
// (metrics.go), from one look at the agent for each scrape; metricnames.go is the
// list of all names, metricvalues.go where their values come from.
//
// Main types: Agent is the little that the server needs of a mirror.Agent,
// Server answers, Client asks, Listen opens the socket.
//
// Invariants: a request body, a header and the number of connections are
// bounded; a client that stops reading is dropped, it never holds up the
// agent; Shutdown lets commands in progress finish and ends event streams;
// two agents never share a socket, and a live agent's socket is never
// removed.
package control
