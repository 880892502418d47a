package control

import (
	"errors"
	"fmt"
)

// ErrInUse means that another agent answers at the socket's path.
var ErrInUse = errors.New("in use by a running agent")

// ErrNoAgent means that nothing answers at the socket's path.
var ErrNoAgent = errors.New("no agent answers")

// RefusedError is an answer of the agent other than success: it understood
// and will not, or cannot.
type RefusedError struct {
	Code    int    // HTTP status
	Message string // why, and what to do; one line
}

// Error returns the agent's own words.
func (e *RefusedError) Error() string { return e.Message }

// badRequest is an error of the caller, answered with its code.
type badRequest struct {
	code int
	err  error
}

func (e *badRequest) Error() string { return e.err.Error() }
func (e *badRequest) Unwrap() error { return e.err }

func badRequestf(code int, format string, args ...any) error {
	return &badRequest{code: code, err: fmt.Errorf(format, args...)}
}
