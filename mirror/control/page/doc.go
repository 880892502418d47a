// Package page is the dashboard of a running agent: one page for a browser, of the files in assets as they are (no build step,
// nothing from elsewhere), and the HTTP behind it.
//
//	GET  /                     the page, or the form that asks for the token
//	POST /login                takes the token, answers with a session's cookie
//	GET  /v1/stream            server-sent events, see below
//	GET  /v1/checkpoints       [mirror.Checkpoint, …], at most some seconds old
//	POST /v1/order/NAME        switch, promote, take-over, verify, verify-stop, drill-start, drill-stop, suspend, resume;
//	                           JSON in and out
//
// The stream says hello (which run of the agent, what may be ordered, the history of lag), then status about once a second and
// at once after an event, and every event under an id RUN-SEQUENCE. Who was away gives the last id back, as browsers do by themselves
// (Last-Event-ID), and gets what came after it, or is told how many are not kept any more (missed).
//
// Main types: Server; Agent, the little it needs of a mirror.Agent; Options; hub (hub.go), which asks the agent once for all that
// look on; door (door.go), which says who may do what.
//
// Who may come in is decided in three places. The listener's: off loopback there is TLS or nothing (CheckAddress). The door's: with a token
// a session or "Authorization: Bearer", with an authority a client's certificate, and a Host header that no other site's name
// can be behind (DNS rebinding). And for orders, which exist only with Options.Control, which needs one of the two: JSON from our own
// origin with the token of this session's page, so that no other site can have a browser send one.
//
// Invariants: connections, streams, headers and bodies are bounded; who does not read for Options.WriteTimeout is dropped; nothing of
// it ever holds up the agent. The page has a policy (CSP) by which only our own files run, and puts data into it as text only.
package page
