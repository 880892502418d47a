package control

import (
	"context"
	"net/http"

	"mirror-agent/mirror"
)

// checks are the requests about verify and scrub, both ends of them.
func (s *Server) checks(handle func(method, path string, h http.Handler)) {
	limit := s.options.CommandTimeout
	handle("POST", "/v1/verify", s.answer(limit, s.verify))
	handle("GET", "/v1/verify", s.answer(limit, func(r *http.Request) (any, error) { return s.agent.VerifyReport(r.Context()) }))
	handle("POST", "/v1/verify/stop", s.answer(limit, s.stopVerify))
	handle("POST", "/v1/scrub", s.answer(limit, s.plainCommand(s.agent.Scrub)))
}

func (s *Server) verify(r *http.Request) (any, error) {
	var o mirror.VerifyOptions
	if err := decode(r, &o); err != nil {
		return nil, err
	}
	if o.Repair != "" && o.Repair != "source" && o.Repair != "target" {
		return nil, badRequestf(http.StatusBadRequest, `verify: "repair" is %q: choose "source" or "target", whose bytes count, or ""`, o.Repair)
	}
	if o.RateBytes < 0 {
		return nil, badRequestf(http.StatusBadRequest, `verify: "rate_bytes" is %d: must not be negative`, o.RateBytes)
	}
	return s.agent.Verify(r.Context(), o)
}

func (s *Server) stopVerify(r *http.Request) (any, error) {
	if err := decode(r, &struct{}{}); err != nil {
		return nil, err
	}
	return s.agent.StopVerify(r.Context())
}

// Verify starts a verify and returns how it begins.
func (c *Client) Verify(ctx context.Context, o mirror.VerifyOptions) (mirror.VerifyReport, error) {
	var r mirror.VerifyReport
	return r, c.call(ctx, http.MethodPost, "/v1/verify", o, &r)
}

// StopVerify ends the verify that runs.
func (c *Client) StopVerify(ctx context.Context) (mirror.VerifyReport, error) {
	var r mirror.VerifyReport
	return r, c.call(ctx, http.MethodPost, "/v1/verify/stop", struct{}{}, &r)
}

// VerifyReport returns what the verify that runs, or ran last, has found.
func (c *Client) VerifyReport(ctx context.Context) (mirror.VerifyReport, error) {
	var r mirror.VerifyReport
	return r, c.call(ctx, http.MethodGet, "/v1/verify", nil, &r)
}

// Scrub has the log of the agent's host read and checked.
func (c *Client) Scrub(ctx context.Context) (mirror.Status, error) {
	return c.command(ctx, "/v1/scrub", struct{}{})
}
