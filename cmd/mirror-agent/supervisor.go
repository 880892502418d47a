package main

import (
	"context"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"

	"mirror-agent/mirror"
)

const (
	readyPoll  = 50 * time.Millisecond // for the first turn of the agent's loop
	statusPoll = 2 * time.Second
)

// supervisor tells the service manager that started the agent (sd_notify(3), a unit of Type=notify) when it is ready, how it is
// and that it lives.
//
//	start ──first turn──▶ running ──end()──▶ ending ──release()──▶ gone
//	        READY=1        STATUS=             STOPPING=1
//	                       WATCHDOG=1 for      WATCHDOG=1 always: the unit's
//	                       each new turn       TimeoutStopSec bounds an end
//
// An agent whose loop hangs says nothing any more, so that it is killed (with a trace of all that it was doing) and started
// again. That loses nothing: it recovers from its log.
type supervisor struct {
	send     func(state string) error
	pulse    func() mirror.Pulse
	watchdog time.Duration // of the unit; 0: none
	log      zerolog.Logger
}

// supervised starts telling; release ends it when the agent has ended. ending is done when the agent begins to end.
func supervised(ending context.Context, log zerolog.Logger, pulse func() mirror.Pulse) (release func()) {
	s := &supervisor{pulse: pulse, log: log}
	s.send = func(state string) error { _, err := daemon.SdNotify(false, state); return err }
	var err error
	if s.watchdog, err = daemon.SdWatchdogEnabled(false); err != nil {
		log.Warn().Err(err).Msg("the unit's watchdog is not served")
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		s.run(ending, stop)
	}()
	return func() { close(stop); <-done }
}

// run tells until stop is closed.
func (s *supervisor) run(ending context.Context, stop <-chan struct{}) {
	every := statusPoll
	if s.watchdog > 0 {
		every = min(every, s.watchdog/4)
	}
	tick := time.NewTicker(min(every, readyPoll))
	defer tick.Stop()
	turn, said, end := uint64(0), "", ending.Done()
	for {
		select {
		case <-stop:
			return
		case <-end:
			end = nil
			s.tell("STOPPING=1\nSTATUS=ending: clients are drained, the log is applied")
			continue
		case <-tick.C:
		}
		p := s.pulse()
		if p.Turn == 0 {
			continue
		}
		if turn == 0 {
			s.tell("READY=1")
			tick.Reset(every)
		}
		switch status := statusLine(&p); {
		case end == nil:
			s.ping()
		case p.Turn != turn:
			if status != said {
				s.tell("STATUS=" + status)
				said = status
			}
			s.ping()
		}
		turn = p.Turn
	}
}

func statusLine(p *mirror.Pulse) string {
	line := p.Role + ", " + p.State
	if p.Reason != "" {
		line += ": " + p.Reason
	}
	return oneLine(line)
}

func (s *supervisor) ping() {
	if s.watchdog > 0 {
		s.tell("WATCHDOG=1")
	}
}

func (s *supervisor) tell(state string) {
	if err := s.send(state); err != nil {
		s.log.Warn().Err(err).Msg("tell the service manager")
	}
}
