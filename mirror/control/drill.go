package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"mirror-agent/mirror"
)

// Drills. POST /v1/drill/hold is a start whose answer does not end before the drill does: a line of JSON when it has begun, one
// when it has ended. Who asked and goes away ends the drill; so nothing is left of a `drill run` that was killed.

type drillRequest struct {
	ID uint64 `json:"id"` // 0 is the one that runs
}

const heldGone = "who ran it went away"

func (s *Server) drills(handle func(method, path string, h http.Handler)) {
	o := s.options
	handle("GET", "/v1/window", s.answer(o.CommandTimeout, func(*http.Request) (any, error) { return s.agent.Window() }))
	handle("GET", "/v1/drill", s.answer(o.CommandTimeout, func(*http.Request) (any, error) {
		st, _, _ := s.agent.Drill()
		return st, nil
	}))
	handle("POST", "/v1/drill/start", s.answer(o.CommandTimeout, s.startDrill))
	handle("POST", "/v1/drill/stop", s.answer(o.CommandTimeout, s.stopDrill))
	handle("POST", "/v1/drill/hold", http.HandlerFunc(s.holdDrill))
}

func (s *Server) startDrill(r *http.Request) (any, error) {
	var o mirror.DrillOptions
	if err := decode(r, &o); err != nil {
		return nil, err
	}
	return s.agent.StartDrill(r.Context(), o)
}

func (s *Server) stopDrill(r *http.Request) (any, error) {
	var q drillRequest
	if err := decode(r, &q); err != nil {
		return nil, err
	}
	return s.agent.StopDrill(r.Context(), q.ID, "")
}

func (s *Server) holdDrill(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBodyBytes)
	started, err := s.startDrill(r)
	if err != nil {
		s.reply(w, statusOf(err), errorReply{oneLine(err)})
		return
	}
	st := started.(mirror.DrillStatus) //nolint:forcetypeassert // startDrill returns nothing else
	// Whatever ends this ends the drill: it is ended already when that is why.
	defer func() { _, _ = s.agent.StopDrill(context.WithoutCancel(r.Context()), st.ID, heldGone) }()
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "application/x-ndjson")
	tell := func(v any) error {
		rc.SetWriteDeadline(time.Now().Add(s.options.WriteTimeout))
		return errors.Join(json.NewEncoder(w).Encode(v), rc.Flush())
	}
	if tell(st) != nil {
		return
	}
	now, ended, _ := s.agent.Drill()
	if now.ID == st.ID {
		select {
		case <-ended:
		case <-r.Context().Done():
			return
		case <-s.stop:
			return
		}
	}
	if last, _, _ := s.agent.Drill(); last.ID == st.ID {
		_ = tell(last)
	}
}

// StartDrill shows the agent's copy at a point.
func (c *Client) StartDrill(ctx context.Context, o mirror.DrillOptions) (mirror.DrillStatus, error) {
	var st mirror.DrillStatus
	return st, c.call(ctx, http.MethodPost, "/v1/drill/start", o, &st)
}

// StopDrill ends a drill; id 0 is the one that runs.
func (c *Client) StopDrill(ctx context.Context, id uint64) (mirror.DrillStatus, error) {
	var st mirror.DrillStatus
	return st, c.call(ctx, http.MethodPost, "/v1/drill/stop", drillRequest{id}, &st)
}

// Drill is the drill that runs, or the last one; its ID is 0 before the first.
func (c *Client) Drill(ctx context.Context) (mirror.DrillStatus, error) {
	var st mirror.DrillStatus
	return st, c.call(ctx, http.MethodGet, "/v1/drill", nil, &st)
}

// Window is what the agent's host can go back to.
func (c *Client) Window(ctx context.Context) (mirror.Window, error) {
	var w mirror.Window
	return w, c.call(ctx, http.MethodGet, "/v1/window", nil, &w)
}

// HeldDrill is a drill that ends with its connection.
type HeldDrill struct {
	Status mirror.DrillStatus // when it had begun
	body   io.ReadCloser
	lines  *json.Decoder
}

// HoldDrill starts a drill that ends when ctx does, the hold is closed, or this process is gone.
func (c *Client) HoldDrill(ctx context.Context, o mirror.DrillOptions) (*HeldDrill, error) {
	body, err := c.send(ctx, http.MethodPost, "/v1/drill/hold", o)
	if err != nil {
		return nil, err
	}
	h := &HeldDrill{body: body, lines: json.NewDecoder(body)}
	if err := h.lines.Decode(&h.Status); err != nil {
		return nil, errors.Join(fmt.Errorf("answer of the agent at %s: %w", c.path, err), body.Close())
	}
	return h, nil
}

// Wait returns how the drill ended, once it has; an error when the agent is gone, or the hold was closed.
func (h *HeldDrill) Wait() (mirror.DrillStatus, error) {
	var st mirror.DrillStatus
	if err := h.lines.Decode(&st); err != nil {
		return st, fmt.Errorf("the agent has ended, and the drill with it: %w", err)
	}
	return st, nil
}

// Close ends the hold, and with it the drill.
func (h *HeldDrill) Close() error { return h.body.Close() }
