package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"

	"mirror-agent/mirror"
)

const (
	maxReplyBytes = 16 << 20
	// The host in the URL means nothing on a unix socket.
	baseURL = "http://agent"
)

// Client asks the agent behind one control socket. It may be used from any
// goroutine; every call is bounded by its ctx alone.
type Client struct {
	path string
	http *http.Client
}

// NewClient returns a client for the socket at path. It connects when asked.
func NewClient(path string) *Client {
	var d net.Dialer
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", path)
		},
		MaxIdleConns: 2, IdleConnTimeout: idleTimeout / 2,
	}}}
}

// Close frees the idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status returns the agent's state.
func (c *Client) Status(ctx context.Context) (mirror.Status, error) {
	var st mirror.Status
	return st, c.call(ctx, http.MethodGet, "/v1/status", nil, &st)
}

// Events returns the kept events with a sequence above after.
func (c *Client) Events(ctx context.Context, after uint64) ([]mirror.Event, error) {
	var list []mirror.Event
	return list, c.call(ctx, http.MethodGet, "/v1/events?after="+strconv.FormatUint(after, 10), nil, &list)
}

// Follow calls fn with every event above after, the kept ones first, until
// ctx is cancelled, fn returns an error, or the agent ends (io.EOF).
func (c *Client) Follow(ctx context.Context, after uint64, fn func(mirror.Event) error) error {
	body, err := c.send(ctx, http.MethodGet, "/v1/events?follow=true&after="+strconv.FormatUint(after, 10), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	for d := json.NewDecoder(body); ; {
		var e mirror.Event
		if err := d.Decode(&e); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
				return io.EOF
			}
			return err
		}
		if err := fn(e); err != nil {
			return err
		}
	}
}

// SetMode changes the mirror's mode and returns the state after it.
func (c *Client) SetMode(ctx context.Context, mode string) (mirror.Status, error) {
	return c.command(ctx, "/v1/mode", modeRequest{mode})
}

// Switch moves the data flow to "backup", "primary" or a target's address.
func (c *Client) Switch(ctx context.Context, to string) (mirror.Status, error) {
	return c.command(ctx, "/v1/switch", switchRequest{to})
}

// Suspend stops the data flow to the followers.
func (c *Client) Suspend(ctx context.Context) (mirror.Status, error) {
	return c.command(ctx, "/v1/suspend", struct{}{})
}

// Resume starts the data flow again.
func (c *Client) Resume(ctx context.Context) (mirror.Status, error) {
	return c.command(ctx, "/v1/resume", struct{}{})
}

// Listen has the agent listen for other hosts at one more address.
func (c *Client) Listen(ctx context.Context, address string) (mirror.Status, error) {
	return c.command(ctx, "/v1/listen/add", listenRequest{address})
}

// Unlisten has it listen at an address no more.
func (c *Client) Unlisten(ctx context.Context, address string) (mirror.Status, error) {
	return c.command(ctx, "/v1/listen/remove", listenRequest{address})
}

// ResetPath has a path of a target built anew.
func (c *Client) ResetPath(ctx context.Context, target string, id int) (mirror.Status, error) {
	return c.command(ctx, "/v1/path/reset", pathRequest{target, id})
}

// RemovePath has a path of a target closed for good.
func (c *Client) RemovePath(ctx context.Context, target string, id int) (mirror.Status, error) {
	return c.command(ctx, "/v1/path/remove", pathRequest{target, id})
}

// SetBandwidth limits what the agent sends to its followers; "none" lifts the limit.
func (c *Client) SetBandwidth(ctx context.Context, limit string) (mirror.Status, error) {
	return c.command(ctx, "/v1/bandwidth", bandwidthRequest{limit})
}

// Resize makes the mirrored device larger; 0 is as large as the source's backing device is.
func (c *Client) Resize(ctx context.Context, size int64) (mirror.Status, error) {
	return c.command(ctx, "/v1/resize", resizeRequest{size})
}

// CreateCheckpoint puts a named checkpoint into the order of writes.
func (c *Client) CreateCheckpoint(ctx context.Context, name string) (mirror.Checkpoint, error) {
	var p mirror.Checkpoint
	return p, c.call(ctx, http.MethodPost, "/v1/checkpoint", checkpointRequest{name}, &p)
}

// Checkpoints returns those in the log of the agent's host, oldest first.
func (c *Client) Checkpoints(ctx context.Context) ([]mirror.Checkpoint, error) {
	var ps []mirror.Checkpoint
	return ps, c.call(ctx, http.MethodGet, "/v1/checkpoints", nil, &ps)
}

// ResizeLog gives the log a file of so many bytes while it is in use.
func (c *Client) ResizeLog(ctx context.Context, bytes int64) (mirror.Status, error) {
	return c.command(ctx, "/v1/log/resize", resizeRequest{bytes})
}

// RemoveMember takes a volume that is gone for good off the list of the members.
func (c *Client) RemoveMember(ctx context.Context, who string) (mirror.Status, error) {
	return c.command(ctx, "/v1/member/remove", memberRequest{who})
}

// Promote makes the secondary a primary.
func (c *Client) Promote(ctx context.Context, o mirror.PromoteOptions) (mirror.PromoteResult, error) {
	var r mirror.PromoteResult
	return r, c.call(ctx, http.MethodPost, "/v1/promote", o, &r)
}

// Demote gives up the volume of a fenced primary.
func (c *Client) Demote(ctx context.Context, o mirror.DemoteOptions) (mirror.DemoteResult, error) {
	var r mirror.DemoteResult
	return r, c.call(ctx, http.MethodPost, "/v1/demote", o, &r)
}

// Failback brings the lead home; with DryRun it says how far that is.
func (c *Client) Failback(ctx context.Context, o mirror.FailbackOptions) (mirror.FailbackResult, error) {
	var r mirror.FailbackResult
	return r, c.call(ctx, http.MethodPost, "/v1/failback", o, &r)
}

func (c *Client) command(ctx context.Context, path string, in any) (mirror.Status, error) {
	var st mirror.Status
	return st, c.call(ctx, http.MethodPost, path, in, &st)
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	body, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxReplyBytes)).Decode(out); err != nil {
		return fmt.Errorf("answer of the agent at %s: %w", c.path, err)
	}
	return nil
}

// send returns the body of a successful answer, which the caller closes.
func (c *Client) send(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	var payload io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		payload = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, baseURL+path, payload)
	if err != nil {
		return nil, err
	}
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	reply, err := c.http.Do(r)
	if err != nil {
		return nil, c.explain(err)
	}
	if reply.StatusCode == http.StatusOK {
		return reply.Body, nil
	}
	defer reply.Body.Close()
	var e errorReply
	err = json.NewDecoder(io.LimitReader(reply.Body, maxReplyBytes)).Decode(&e)
	if err != nil || e.Error == "" {
		e.Error = fmt.Sprintf("the agent at %s answered %s", c.path, reply.Status)
	}
	return nil, &RefusedError{Code: reply.StatusCode, Message: e.Error}
}

// explain turns a transport's error into words for the operator.
func (c *Client) explain(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("agent at %s: no answer yet: %w", c.path, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("control socket %s: permission denied; run as the agent's user or as root", c.path)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s: start it, or name the right socket with --control or --name", ErrNoAgent, c.path)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("agent at %s ended before it answered: %w; see its log", c.path, err)
	}
	return fmt.Errorf("agent at %s: %w", c.path, err)
}
