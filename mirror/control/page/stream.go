package page

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"mirror-agent/mirror"
)

// freshEvents is how many of the past a page gets that knows none.
const freshEvents = 200

// run tells the sequences of this process from those of another one at the same address.
var run = uuid.NewString()[:8]

type hello struct {
	Run     string   `json:"run"`
	Control bool     `json:"control"`
	Token   string   `json:"token,omitempty"` // for X-Page-Token
	History []sample `json:"history"`
}

// stream sends all that happens until the client goes, stops reading, or the server ends.
func (s *Server) stream(w http.ResponseWriter, r *http.Request) {
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		w.Header().Set("Retry-After", "5")
		s.refuse(w, http.StatusServiceUnavailable, fmt.Sprintf("%d pages look on already; try again later", s.options.MaxStreams))
		return
	}
	first := hello{Run: run, Control: s.options.Control, History: s.hub.past()}
	if s.options.Control {
		var err error
		if first.Token, err = s.door.pageToken(r); err != nil {
			s.refuse(w, http.StatusServiceUnavailable, err.Error())
			return
		}
	}
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Time{}) // the request has been read; its deadline must not end the stream
	w.Header().Set("Content-Type", "text/event-stream")
	var out bytes.Buffer
	out.WriteString("retry: 1000\n\n")
	message(&out, "hello", "", first)
	after, resumed := resumeAt(r)
	for {
		body, more := s.hub.latest()
		events, _ := s.agent.Events(after)
		after = s.addEvents(&out, events, after, resumed)
		resumed = true
		fmt.Fprintf(&out, "event: status\ndata: %s\n\n", body)
		rc.SetWriteDeadline(time.Now().Add(s.options.WriteTimeout))
		if _, err := w.Write(out.Bytes()); err != nil {
			return
		}
		if rc.Flush() != nil {
			return
		}
		out.Reset()
		select {
		case <-more:
		case <-r.Context().Done():
			return
		case <-s.stop:
			return
		}
	}
}

// addEvents adds the messages of events, those above after, and returns the last sequence.
func (s *Server) addEvents(out *bytes.Buffer, events []mirror.Event, after uint64, resumed bool) uint64 {
	if len(events) == 0 {
		return after
	}
	if missed := events[0].Sequence - after - 1; resumed && missed > 0 {
		message(out, "missed", "", map[string]uint64{"count": missed})
	}
	if !resumed {
		events = events[max(0, len(events)-freshEvents):]
	}
	for _, e := range events {
		message(out, "happened", fmt.Sprintf("%s-%d", run, e.Sequence), e)
	}
	return events[len(events)-1].Sequence
}

// resumeAt reads the last event that a client has; of another run it has none.
func resumeAt(r *http.Request) (after uint64, resumed bool) {
	id := r.Header.Get("Last-Event-ID")
	if id == "" {
		id = r.URL.Query().Get("after")
	}
	of, n, ok := strings.Cut(id, "-")
	if !ok || of != run {
		return 0, false
	}
	after, err := strconv.ParseUint(n, 10, 64)
	return after, err == nil
}

func message(out *bytes.Buffer, kind, id string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain data
	}
	if id != "" {
		fmt.Fprintf(out, "id: %s\n", id)
	}
	fmt.Fprintf(out, "event: %s\ndata: %s\n\n", kind, b)
}

func (s *Server) checkpoints(w http.ResponseWriter, r *http.Request) {
	list, err := s.marks.get(r.Context(), s.agent)
	if err != nil {
		s.refuse(w, http.StatusConflict, oneLine(err))
		return
	}
	if list == nil {
		list = []mirror.Checkpoint{}
	}
	s.reply(w, http.StatusOK, list)
}
