package control

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"mirror-agent/mirror"
)

// TestHoldDrill: a drill that is held ends with whoever holds it, and with the server; who holds it hears how it ended.
func TestHoldDrill(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(a *fakeAgent, s *Server, h *HeldDrill, cancel context.CancelFunc) error
		why  string
	}{
		{"the holder goes", func(_ *fakeAgent, _ *Server, h *HeldDrill, _ context.CancelFunc) error { return h.Close() }, heldGone},
		{"the holder's patience ends", func(_ *fakeAgent, _ *Server, _ *HeldDrill, cancel context.CancelFunc) error { cancel(); return nil }, heldGone},
		{"the server ends", func(_ *fakeAgent, s *Server, _ *HeldDrill, _ context.CancelFunc) error { return s.Close() }, heldGone},
		{"it is ended", func(a *fakeAgent, _ *Server, h *HeldDrill, _ context.CancelFunc) error {
			_, err := a.StopDrill(t.Context(), h.Status.ID, "the scratch is full")
			if last, werr := h.Wait(); werr != nil || last.Running || last.Reason != "the scratch is full" || last.ID != h.Status.ID {
				return errors.Join(err, werr, errors.New("the holder was told something else: "+last.Reason))
			}
			return err
		}, "the scratch is full"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newFakeAgent()
			s, path := serve(t, a, nil)
			cl := NewClient(path)
			t.Cleanup(cl.Close)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			h, err := cl.HoldDrill(ctx, mirror.DrillOptions{At: "lsn:4096"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = h.Close() })
			if !h.Status.Running || h.Status.Asked != "lsn:4096" {
				t.Fatalf("%+v", h.Status)
			}
			_, ended, _ := a.Drill()
			select {
			case <-ended:
				t.Fatal("it ended by itself")
			default:
			}
			if err := c.end(a, s, h, cancel); err != nil {
				t.Fatal(err)
			}
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Fatal("the drill goes on")
			}
			if d, _, _ := a.Drill(); d.Reason != c.why {
				t.Fatalf("it ended for %q", d.Reason)
			}
		})
	}
}

// TestDrillRequests: the rest of what is asked of drills.
func TestDrillRequests(t *testing.T) {
	a := newFakeAgent()
	_, path := serve(t, a, nil)
	cl := NewClient(path)
	t.Cleanup(cl.Close)
	if st, err := cl.Drill(t.Context()); err != nil || st.ID != 0 {
		t.Fatalf("%+v: %v", st, err)
	}
	if w, err := cl.Window(t.Context()); err != nil || w.To.LSN != 8192 {
		t.Fatalf("%+v: %v", w, err)
	}
	if _, err := cl.StopDrill(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "no drill runs") {
		t.Fatal(err)
	}
	if st, err := cl.StartDrill(t.Context(), mirror.DrillOptions{NBD: "unix:/x"}); err != nil || st.ID != 1 {
		t.Fatalf("%+v: %v", st, err)
	}
	if st, err := cl.StopDrill(t.Context(), 1); err != nil || st.Running {
		t.Fatalf("%+v: %v", st, err)
	}
	a.refuse = errors.New("refused: no")
	if _, err := cl.HoldDrill(t.Context(), mirror.DrillOptions{}); err == nil || !strings.Contains(err.Error(), "refused: no") {
		t.Fatal(err)
	}
}
