package page

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"mirror-agent/mirror"
)

// orderRequest is the body of all orders; each takes what it has a use for.
type orderRequest struct {
	To     string `json:"to"`
	Force  bool   `json:"force"`
	DryRun bool   `json:"dry_run"`
	At     string `json:"at"` // of a drill, see mirror.DrillOptions
	ID     uint64 `json:"id"` // of the drill that the operator saw
}

// order carries out POST /v1/order/{name}.
func (s *Server) order(w http.ResponseWriter, r *http.Request) {
	switch {
	case !s.options.Control:
		s.refuse(w, http.StatusForbidden, "this page is for looking on; the agent takes orders from it with --http-control")
		return
	case !s.door.ours(r):
		s.refuse(w, http.StatusForbidden, "an order has to come from the agent's own page; load it again")
		return
	case r.Header.Get("Content-Type") != "application/json":
		s.refuse(w, http.StatusUnsupportedMediaType, "an order is application/json")
		return
	}
	var q orderRequest
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil && !errors.Is(err, io.EOF) {
		s.refuse(w, http.StatusBadRequest, "request body: "+oneLine(err))
		return
	}
	name := r.PathValue("name")
	limit := commandTimeout
	if name == "promote" || name == "take-over" {
		limit = promoteTimeout
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(promoteTimeout + s.options.WriteTimeout))
	}
	ctx, cancel := context.WithTimeout(r.Context(), limit)
	defer cancel()
	v, known, err := s.give(ctx, name, &q)
	switch {
	case !known:
		s.refuse(w, http.StatusNotFound, name+": no such order")
	case err != nil:
		s.refuse(w, http.StatusConflict, oneLine(err))
	default:
		if !q.DryRun {
			s.options.Log.Info().Str("order", name).Str("peer", r.RemoteAddr).Msg("ordered from the page")
		}
		s.reply(w, http.StatusOK, v)
	}
}

func (s *Server) give(ctx context.Context, name string, q *orderRequest) (v any, known bool, err error) {
	v = struct{}{}
	switch name {
	case "switch":
		if q.To == "" {
			return nil, true, errors.New("switch: say where to")
		}
		err = s.agent.Switch(ctx, q.To)
	case "promote":
		v, err = s.agent.Promote(ctx, mirror.PromoteOptions{Force: q.Force, DryRun: q.DryRun})
	case "take-over":
		v, err = s.agent.Promote(ctx, mirror.PromoteOptions{Planned: true})
	case "verify":
		v, err = s.agent.Verify(ctx, mirror.VerifyOptions{})
	case "verify-stop":
		v, err = s.agent.StopVerify(ctx)
	case "drill-start":
		v, err = s.agent.StartDrill(ctx, mirror.DrillOptions{At: q.At})
	case "drill-stop":
		if q.ID == 0 {
			return nil, true, errors.New("drill-stop: say which drill")
		}
		v, err = s.agent.StopDrill(ctx, q.ID, "stopped from the page")
	case "suspend":
		err = s.agent.Suspend(ctx)
	case "resume":
		err = s.agent.Resume(ctx)
	default:
		return nil, false, nil
	}
	return v, true, err
}

func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
