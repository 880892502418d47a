package dataport

import (
	"errors"
	"fmt"
)

// Errors of use: the caller did something that cannot be done.
var (
	ErrClosed         = errors.New("dataport: closed")
	ErrNotConnected   = errors.New("dataport: port has no session")
	ErrNameTaken      = errors.New("dataport: a client of this name is already registered")
	ErrMessageTooBig  = errors.New("dataport: message is larger than the peer takes")
	ErrUnknownTarget  = errors.New("dataport: no such target in the port's list")
	ErrUnknownPath    = errors.New("dataport: no such path")
	ErrTooManyPaths   = errors.New("dataport: port has as many paths as it may have")
	ErrNotListening   = errors.New("dataport: the node does not listen there")
	ErrFenced         = errors.New("dataport: fenced: a peer has seen a higher generation")
	ErrAlreadyCurrent = errors.New("dataport: port is already on this target")
	// ErrCallInOnMessage: a Call with the ctx of an OnMessage of the same session. Its reply could be behind messages that
	// wait for this OnMessage to return, on either side.
	ErrCallInOnMessage = errors.New("dataport: call in OnMessage to the peer whose message it is")
)

// Errors of a session: it ended, and what it still held was not delivered as far as this side knows.
var (
	// ErrSessionLost is the error of every receipt and call that was open when its session ended.
	// The message may or may not have reached the peer's client: the client re-establishes the common
	// state with the new session.
	ErrSessionLost = errors.New("dataport: session lost")
)

// Errors of the wire: input from a peer that breaks the protocol. They end a path or a session, never the process.
var (
	ErrFrame     = errors.New("dataport: malformed frame")
	ErrProtocol  = errors.New("dataport: peer broke the protocol")
	ErrRefused   = errors.New("dataport: peer refused the connection")
	ErrWrongKey  = errors.New("dataport: peer's key is not one of the expected")
	ErrBadHello  = errors.New("dataport: malformed hello")
	errNoSession = errors.New("dataport: peer does not know the session")
)

// RemoteError is the error that the peer's OnMessage returned for a Call, or the peer's port when the reply could not be sent.
type RemoteError struct{ Text string }

func (e *RemoteError) Error() string { return "remote: " + e.Text }

// SessionError tells why a session ended. It wraps ErrSessionLost.
type SessionError struct {
	Session SessionID
	Reason  string
}

func (e *SessionError) Error() string {
	return fmt.Sprintf("dataport: session %s lost: %s", e.Session, e.Reason)
}

func (e *SessionError) Unwrap() error { return ErrSessionLost }

// RefusedError is what the peer answered to a hello. It wraps ErrRefused.
type RefusedError struct {
	Code   RefuseCode
	Reason string
}

func (e *RefusedError) Error() string { return "dataport: refused by the peer: " + e.Reason }

func (e *RefusedError) Unwrap() error { return ErrRefused }
