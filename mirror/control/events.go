package control

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"mirror-agent/mirror"
)

// events answers GET /v1/events: a list, or a stream of lines when followed.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	after, follow, err := eventsQuery(r)
	if err != nil {
		s.reply(w, statusOf(err), errorReply{oneLine(err)})
		return
	}
	if !follow {
		list, _ := s.agent.Events(after)
		if list == nil {
			list = []mirror.Event{}
		}
		s.reply(w, http.StatusOK, list)
		return
	}
	s.follow(w, r, after)
}

func eventsQuery(r *http.Request) (after uint64, follow bool, err error) {
	q := r.URL.Query()
	if v := q.Get("after"); v != "" {
		if after, err = strconv.ParseUint(v, 10, 64); err != nil {
			return 0, false, badRequestf(http.StatusBadRequest, "after=%q: give the sequence of the last event you have, or 0", v)
		}
	}
	if v := q.Get("follow"); v != "" {
		if follow, err = strconv.ParseBool(v); err != nil {
			return 0, false, badRequestf(http.StatusBadRequest, "follow=%q: true or false", v)
		}
	}
	return after, follow, nil
}

// follow streams until the client goes, stops reading, or the server ends.
func (s *Server) follow(w http.ResponseWriter, r *http.Request, after uint64) {
	rc := http.NewResponseController(w)
	// The request has been read; its deadline must not end a long stream.
	rc.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := json.NewEncoder(w)
	for {
		list, changed := s.agent.Events(after)
		rc.SetWriteDeadline(time.Now().Add(s.options.WriteTimeout))
		for _, e := range list {
			if lines.Encode(e) != nil {
				return
			}
			after = max(after, e.Sequence)
		}
		if rc.Flush() != nil {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		case <-s.stop:
			return
		}
	}
}
