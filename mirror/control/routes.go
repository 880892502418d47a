package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"mirror-agent/mirror"
)

// The request bodies. Unknown fields are refused: a misspelt "force" must not
// be taken for false.
type (
	modeRequest struct {
		Mode string `json:"mode"`
	}
	switchRequest struct {
		To string `json:"to"`
	}
	pathRequest struct {
		Target string `json:"target"`
		ID     int    `json:"id"`
	}
	listenRequest struct {
		Address string `json:"address"`
	}
	bandwidthRequest struct {
		Limit string `json:"limit"` // "none": no limit
	}
	resizeRequest struct {
		SizeBytes int64 `json:"size_bytes"` // of the device: 0 is as large as the backing device is
	}
	checkpointRequest struct {
		Name string `json:"name"`
	}
	memberRequest struct {
		Member string `json:"member"` // its host's name, an address, or its id
	}
	errorReply struct {
		Error string `json:"error"`
	}
)

// handler answers with a value for the client or an error.
type handler func(r *http.Request) (any, error)

func (s *Server) routes() http.Handler {
	o := s.options
	mux := http.NewServeMux()
	allowed := map[string]string{}
	handle := func(method, path string, h http.Handler) {
		mux.Handle(method+" "+path, h)
		if m := allowed[path]; m != "" {
			method = m + ", " + method
		}
		allowed[path] = method
	}
	handle("GET", "/v1/status", s.answer(o.CommandTimeout, func(*http.Request) (any, error) { return s.status(), nil }))
	handle("GET", "/v1/events", http.HandlerFunc(s.events))
	handle("POST", "/v1/mode", s.answer(o.CommandTimeout, s.setMode))
	handle("POST", "/v1/switch", s.answer(o.CommandTimeout, s.switchTo))
	handle("POST", "/v1/promote", s.answer(o.PromoteTimeout, s.promote))
	handle("POST", "/v1/demote", s.answer(o.PromoteTimeout, s.demote))
	handle("POST", "/v1/failback", s.answer(o.PromoteTimeout, s.failback))
	handle("POST", "/v1/suspend", s.answer(o.CommandTimeout, s.plainCommand(s.agent.Suspend)))
	handle("POST", "/v1/resume", s.answer(o.CommandTimeout, s.plainCommand(s.agent.Resume)))
	handle("POST", "/v1/path/reset", s.answer(o.CommandTimeout, s.onPath(s.agent.ResetPath)))
	handle("POST", "/v1/path/remove", s.answer(o.CommandTimeout, s.onPath(s.agent.RemovePath)))
	handle("POST", "/v1/listen/add", s.answer(o.CommandTimeout, s.listen(func(ctx context.Context, address string) error {
		_, err := s.agent.Listen(ctx, address)
		return err
	})))
	handle("POST", "/v1/listen/remove", s.answer(o.CommandTimeout, s.listen(s.agent.Unlisten)))
	handle("POST", "/v1/bandwidth", s.answer(o.CommandTimeout, s.setBandwidth))
	handle("POST", "/v1/resize", s.answer(o.CommandTimeout, s.resize))
	handle("POST", "/v1/checkpoint", s.answer(o.CommandTimeout, s.createCheckpoint))
	handle("GET", "/v1/checkpoints", s.answer(o.CommandTimeout, func(r *http.Request) (any, error) { return s.agent.Checkpoints(r.Context()) }))
	handle("POST", "/v1/log/resize", s.answer(o.PromoteTimeout, s.resizeLog))
	handle("POST", "/v1/member/remove", s.answer(o.CommandTimeout, s.removeMember))
	s.checks(handle)
	s.drills(handle)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if m, ok := allowed[r.URL.Path]; ok {
			w.Header().Set("Allow", m)
			s.reply(w, http.StatusMethodNotAllowed, errorReply{r.URL.Path + ": use " + m})
			return
		}
		s.reply(w, http.StatusNotFound, errorReply{r.URL.Path + ": this agent knows no such request; is the client of another version?"})
	})
	return mux
}

// answer runs h within timeout and writes what it returns.
func (s *Server) answer(timeout time.Duration, h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBodyBytes)
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		v, err := h(r.WithContext(ctx))
		if err != nil {
			s.reply(w, statusOf(err), errorReply{oneLine(err)})
			return
		}
		s.reply(w, http.StatusOK, v)
	})
}

func (s *Server) reply(w http.ResponseWriter, code int, v any) {
	// A client that does not read is its own loss: the deadline frees us.
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.options.WriteTimeout))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.options.Log.Debug().Err(err).Msg("control client went away before its answer")
	}
}

func statusOf(err error) int {
	var bad *badRequest
	switch {
	case errors.As(err, &bad):
		return bad.code
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	case errors.Is(err, context.Canceled):
		return http.StatusServiceUnavailable
	}
	return http.StatusConflict
}

func oneLine(err error) string { return strings.Join(strings.FieldsFunc(err.Error(), isBreak), "; ") }

func isBreak(r rune) bool { return r == '\n' || r == '\r' }

// decode reads the body into v; an empty one leaves v as it is.
func decode(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil && d.More() {
		err = errors.New("more than one JSON value")
	}
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong):
		return badRequestf(http.StatusRequestEntityTooLarge, "request body: longer than %d bytes", tooLong.Limit)
	case err != nil:
		return badRequestf(http.StatusBadRequest, "request body: %w", err)
	}
	return nil
}

// status is the agent's status with empty lists instead of nulls, so that a
// script can walk them.
func (s *Server) status() mirror.Status {
	st := s.agent.Status()
	if st.Listen == nil {
		st.Listen = []string{}
	}
	if st.Announced == nil {
		st.Announced = []string{}
	}
	if st.Alarms == nil {
		st.Alarms = []mirror.Alarm{}
	}
	followers := make([]mirror.FollowerStatus, len(st.Followers))
	copy(followers, st.Followers)
	for i := range followers {
		if followers[i].Paths == nil {
			followers[i].Paths = []mirror.PathStatus{}
		}
	}
	st.Followers = followers
	if st.Source != nil && st.Source.Paths == nil {
		source := *st.Source
		source.Paths = []mirror.PathStatus{}
		st.Source = &source
	}
	return st
}

func (s *Server) setMode(r *http.Request) (any, error) {
	var q modeRequest
	if err := decode(r, &q); err != nil {
		return nil, err
	}
	m, err := mirror.ParseMode(q.Mode)
	if err != nil {
		return nil, badRequestf(http.StatusBadRequest, "%w", err)
	}
	if err := s.agent.SetMode(r.Context(), m); err != nil {
		return nil, err
	}
	return s.status(), nil
}

func (s *Server) switchTo(r *http.Request) (any, error) {
	var q switchRequest
	if err := decode(r, &q); err != nil {
		return nil, err
	}
	if q.To == "" {
		return nil, badRequestf(http.StatusBadRequest, `switch: say where "to": "backup", "primary" or a target's address`)
	}
	if err := s.agent.Switch(r.Context(), q.To); err != nil {
		return nil, err
	}
	return s.status(), nil
}

func (s *Server) promote(r *http.Request) (any, error) {
	var o mirror.PromoteOptions
	if err := decode(r, &o); err != nil {
		return nil, err
	}
	return s.agent.Promote(r.Context(), o)
}

func (s *Server) demote(r *http.Request) (any, error) {
	var o mirror.DemoteOptions
	if err := decode(r, &o); err != nil {
		return nil, err
	}
	return s.agent.Demote(r.Context(), o)
}

func (s *Server) failback(r *http.Request) (any, error) {
	var o mirror.FailbackOptions
	if err := decode(r, &o); err != nil {
		return nil, err
	}
	return s.agent.Failback(r.Context(), o)
}

func (s *Server) onPath(order func(ctx context.Context, target string, id int) error) handler {
	return func(r *http.Request) (any, error) {
		var q pathRequest
		if err := decode(r, &q); err != nil {
			return nil, err
		}
		if err := order(r.Context(), q.Target, q.ID); err != nil {
			return nil, err
		}
		return s.status(), nil
	}
}

func (s *Server) listen(command func(context.Context, string) error) handler {
	return func(r *http.Request) (any, error) {
		var q listenRequest
		if err := decode(r, &q); err != nil {
			return nil, err
		}
		if _, _, err := net.SplitHostPort(q.Address); err != nil {
			return nil, badRequestf(http.StatusBadRequest, `listen: "address" %q: give HOST:PORT`, q.Address)
		}
		if err := command(r.Context(), q.Address); err != nil {
			return nil, err
		}
		return s.status(), nil
	}
}

func (s *Server) setBandwidth(r *http.Request) (any, error) {
	var q bandwidthRequest
	if err := decode(r, &q); err != nil {
		return nil, err
	}
	if q.Limit == "" {
		return nil, badRequestf(http.StatusBadRequest, `bandwidth: say the "limit", like "50MB/s" or "none"`)
	}
	if err := s.agent.SetBandwidth(r.Context(), q.Limit); err != nil {
		return nil, err
	}
	return s.status(), nil
}

func (s *Server) resize(r *http.Request) (any, error) {
	var q resizeRequest
	if err := decode(r, &q); err != nil {
		return nil, err
	}
	if q.SizeBytes < 0 {
		return nil, badRequestf(http.StatusBadRequest, "resize: size %d is negative", q.SizeBytes)
	}
	if _, err := s.agent.Resize(r.Context(), q.SizeBytes); err != nil {
		return nil, err
	}
	return s.status(), nil
}

func (s *Server) createCheckpoint(r *http.Request) (any, error) {
	var q checkpointRequest
	if err := decode(r, &q); err != nil {
		return nil, err
	}
	return s.agent.CreateCheckpoint(r.Context(), q.Name)
}

func (s *Server) resizeLog(r *http.Request) (any, error) {
	var q resizeRequest
	if err := decode(r, &q); err != nil {
		return nil, err
	}
	if q.SizeBytes <= 0 {
		return nil, badRequestf(http.StatusBadRequest, `log resize: say how large, "size_bytes"`)
	}
	if err := s.agent.ResizeLog(r.Context(), q.SizeBytes); err != nil {
		return nil, err
	}
	return s.status(), nil
}

func (s *Server) removeMember(r *http.Request) (any, error) {
	var q memberRequest
	if err := decode(r, &q); err != nil {
		return nil, err
	}
	if q.Member == "" {
		return nil, badRequestf(http.StatusBadRequest, `member remove: say which "member": its host's name, an address, or its id`)
	}
	if err := s.agent.RemoveMember(r.Context(), q.Member); err != nil {
		return nil, err
	}
	return s.status(), nil
}

func (s *Server) plainCommand(command func(context.Context) error) handler {
	return func(r *http.Request) (any, error) {
		if err := decode(r, &struct{}{}); err != nil {
			return nil, err
		}
		if err := command(r.Context()); err != nil {
			return nil, err
		}
		return s.status(), nil
	}
}
