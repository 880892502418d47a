package dataport

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Bandwidth is a limit in bytes per second that may depend on the time of day. The zero value is no limit.
//
//	50MB/s                                            always
//	08:00-18:00=20MB/s,*=100MB/s                      the first rule that fits; where none does there is no limit
//	Mon-Fri 08:00-18:00=160Mbit/s,Sat+Sun=none        days, alone or with a time; none is no limit
//	Fri 22:00-06:00=1GiB/s                            over midnight: it belongs to the day it begins on
//
// Units: B, kB, MB, GB (1000), KiB, MiB, GiB (1024), kbit, Mbit, Gbit (1000, an eighth each), all "/s". Times are those
// of the clock on the wall, in the zone of the time that At is given: when it is put forward or back, windows are
// shorter or longer in that night, and an hour that the clock shows twice counts twice.
type Bandwidth struct {
	rules []bandwidthRule
	text  string
}

type bandwidthRule struct {
	days     uint8 // bit 0 Sunday; 0: every day
	from, to int   // minutes of the day; equal: all day; to below from: over midnight
	rate     float64
}

const (
	maxBandwidthRules = 64
	unlimited         = 0
)

var weekdays = [...]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// ParseBandwidth reads a limit as above; "none" and "" are no limit.
func ParseBandwidth(s string) (Bandwidth, error) {
	s = strings.TrimSpace(s)
	if s == "" || s == "none" {
		return Bandwidth{}, nil
	}
	b := Bandwidth{text: s}
	for part := range strings.SplitSeq(s, ",") {
		r, err := parseRule(strings.TrimSpace(part))
		if err != nil {
			return Bandwidth{}, fmt.Errorf("bandwidth %q: %w", s, err)
		}
		if b.rules = append(b.rules, r); len(b.rules) > maxBandwidthRules {
			return Bandwidth{}, fmt.Errorf("bandwidth: more than %d rules", maxBandwidthRules)
		}
	}
	return b, nil
}

func parseRule(s string) (r bandwidthRule, err error) {
	when, rate, ok := strings.Cut(s, "=")
	if !ok {
		when, rate = "*", s
	}
	if r.rate, err = parseRate(strings.TrimSpace(rate)); err != nil {
		return r, err
	}
	words := strings.Fields(when)
	if len(words) == 1 && words[0] == "*" {
		return r, nil
	}
	if len(words) == 0 || len(words) > 2 {
		return r, fmt.Errorf("%q is no time: give *, HH:MM-HH:MM, days like Mon-Fri or Sat+Sun, or days and a time", when)
	}
	if last := words[len(words)-1]; strings.Contains(last, ":") {
		if r.from, r.to, err = parseSpan(last); err != nil {
			return r, err
		}
		words = words[:len(words)-1]
	}
	if len(words) == 0 {
		return r, nil
	}
	if len(words) == 2 {
		return r, fmt.Errorf("%q is no time of day: give HH:MM-HH:MM", words[1])
	}
	r.days, err = parseDays(words[0])
	return r, err
}

// parseSpan returns minutes of the day; an end at 24:00 is one at 0:00.
func parseSpan(s string) (from, to int, err error) {
	a, b, ok := strings.Cut(s, "-")
	from, okFrom := parseMinute(a)
	to, okTo := parseMinute(b)
	switch {
	case !ok || !okFrom || !okTo || from == 24*60:
		return 0, 0, fmt.Errorf("%q is no span of a day: give HH:MM-HH:MM, from 00:00 to 24:00", s)
	case from == to:
		return 0, 0, fmt.Errorf("%q is empty: for a whole day leave the time out", s)
	}
	return from, to % (24 * 60), nil
}

func parseMinute(s string) (int, bool) {
	h, m, ok := strings.Cut(s, ":")
	hour, okHour := parseTwo(h)
	minute, okMinute := parseTwo(m)
	at := hour*60 + minute
	return at, ok && okHour && okMinute && len(m) == 2 && minute < 60 && at <= 24*60
}

func parseTwo(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 8)
	return int(n), err == nil && len(s) <= 2
}

func parseDays(s string) (days uint8, err error) {
	for part := range strings.SplitSeq(s, "+") {
		a, b, isRange := strings.Cut(part, "-")
		from, to := weekday(a), weekday(b)
		if !isRange {
			to = from
		}
		if from < 0 || to < 0 {
			return 0, fmt.Errorf("%q names no days: give Mon, Tue, Wed, Thu, Fri, Sat, Sun, like Mon-Fri or Sat+Sun", s)
		}
		for d := from; ; d = (d + 1) % 7 {
			days |= 1 << d
			if d == to {
				break
			}
		}
	}
	return days, nil
}

func weekday(s string) int {
	for i, d := range weekdays {
		if strings.EqualFold(s, d) {
			return i
		}
	}
	return -1
}

// rateUnits are tried in this order: "B" ends all of the first ones.
var rateUnits = []struct {
	name  string
	bytes float64
}{
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"kB", 1e3},
	{"KB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"kbit", 1e3 / 8},
	{"Mbit", 1e6 / 8},
	{"Gbit", 1e9 / 8},
	{"B", 1},
}

func parseRate(s string) (float64, error) {
	if s == "none" {
		return unlimited, nil
	}
	if body, ok := strings.CutSuffix(s, "/s"); ok {
		for _, u := range rateUnits {
			number, ok := strings.CutSuffix(body, u.name)
			if !ok {
				continue
			}
			n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
			switch {
			case err != nil || math.IsNaN(n) || math.IsInf(n, 0):
				return 0, fmt.Errorf("%q is no number", number)
			case n*u.bytes < 1:
				return 0, fmt.Errorf("%q is nothing: to stop the flow, suspend it", s)
			case n*u.bytes > 1e15:
				return 0, fmt.Errorf("%q is more than any link has: none is no limit", s)
			}
			return n * u.bytes, nil
		}
	}
	return 0, fmt.Errorf("%q is no rate: give one like 50MB/s, 20MiB/s or 100Mbit/s, or none", s)
}

// String returns what ParseBandwidth was given, "none" without a limit.
func (b Bandwidth) String() string {
	if len(b.rules) == 0 {
		return "none"
	}
	return b.text
}

// At returns the limit at t in bytes per second, 0 for none. It changes at whole minutes only.
func (b Bandwidth) At(t time.Time) float64 {
	if len(b.rules) == 0 {
		return unlimited
	}
	minute, today := t.Hour()*60+t.Minute(), t.Weekday()
	for _, r := range b.rules {
		if r.fits(minute, today) {
			return r.rate
		}
	}
	return unlimited
}

func (r *bandwidthRule) fits(minute int, today time.Weekday) bool {
	day := today
	switch {
	case r.from == r.to:
	case r.from < r.to:
		if minute < r.from || minute >= r.to {
			return false
		}
	case minute >= r.from:
	case minute < r.to:
		day = (today + 6) % 7
	default:
		return false
	}
	return r.days == 0 || r.days&(1<<day) != 0
}

// limiter is a port's bandwidth limit: a bucket of tokens, one per byte on the wire. A frame goes out while there are
// any, and its cost is taken off: so a limit below one frame a second still moves, and whatever goes out too early is
// waited for afterwards. golang.org/x/time/rate would refuse what is above the burst, and knows no debt.
type limiter struct {
	mu     sync.Mutex // leaf: guards the fields below
	plan   Bandwidth
	rate   float64 // of the plan now; unlimited: 0
	until  time.Time
	tokens float64 // never above burst
	last   time.Time
}

const (
	limitBurst      = 25 * time.Millisecond // of the rate may be saved up: what timers are late by
	limitBurstBytes = 16 << 10              // and this at least
)

// advance brings rate and tokens to now. l.mu is held.
func (l *limiter) advance(now time.Time) {
	if l.rate > 0 {
		l.tokens = min(l.tokens+l.rate*now.Sub(l.last).Seconds(), l.burst())
	}
	l.last = now
	if now.Before(l.until) {
		return
	}
	l.until = now.Add(time.Minute - time.Duration(now.Second())*time.Second - time.Duration(now.Nanosecond()))
	was := l.rate
	if l.rate = l.plan.At(now); was != l.rate {
		l.tokens = min(l.tokens, l.burst())
		if was == unlimited || l.rate == unlimited {
			l.tokens = l.burst() // nothing was counted, or nothing counts any more
		}
	}
}

func (l *limiter) burst() float64 {
	return max(l.rate*limitBurst.Seconds(), limitBurstBytes)
}

// set changes the plan. What went out beyond the old rate is still waited for, at the new one, but for a second at most.
func (l *limiter) set(b Bandwidth, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.advance(now)
	l.plan, l.until = b, now
	l.advance(now)
	l.tokens = max(l.tokens, -l.rate)
}

// rateAt returns the limit at now, 0 for none.
func (l *limiter) rateAt(now time.Time) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.plan.rules) == 0 {
		return unlimited
	}
	l.advance(now)
	return l.rate
}

// wait returns how long nothing may go out, 0 when something may, and how large that should be at most: at a minute's
// end the rate may be another, so that it never waits beyond.
func (l *limiter) wait(now time.Time) (time.Duration, int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.plan.rules) == 0 {
		return 0, maxFramePayload
	}
	l.advance(now)
	if l.rate == unlimited {
		return 0, maxFramePayload
	}
	if l.tokens > 0 {
		return 0, min(int(l.burst()), maxFramePayload)
	}
	pause := time.Duration((1-l.tokens)/l.rate*float64(time.Second)) + 1
	return min(pause, l.until.Sub(now)), 0
}

func (l *limiter) spend(bytes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate != unlimited {
		l.tokens -= float64(bytes)
	}
}

// mayCut returns how large a frame may go out now; 0: none, and dispatch runs again when one may. s.mu is held.
func (s *Session) mayCut() int {
	if s.port == nil {
		return maxFramePayload
	}
	pause, most := s.port.limit.wait(time.Now())
	s.throttled = pause > 0
	if pause == 0 {
		return most
	}
	if s.limitTimer == nil {
		s.limitTimer = time.AfterFunc(pause, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.dispatch()
		})
	} else {
		s.limitTimer.Reset(pause)
	}
	return 0
}

// spend takes a frame that goes out off the limit. s.mu is held.
func (s *Session) spend(f *outFrame) {
	if s.port != nil {
		s.port.limit.spend(headerBytes + f.n)
	}
}

// SetBandwidth changes the limit of what the port sends, over all its paths together: messages and replies, also when
// they go out again; heartbeats and acknowledgements are free. It counts at once, and for later sessions too.
func (p *Port) SetBandwidth(b Bandwidth) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.machine.base == PortIsClosed {
		return ErrClosed
	}
	p.limit.set(b, time.Now())
	if s := p.sess; s != nil {
		s.mu.Lock()
		s.dispatch()
		s.mu.Unlock()
	}
	return nil
}

// BandwidthStats is a snapshot of a port's limit.
type BandwidthStats struct {
	Limit          Bandwidth
	BytesPerSecond float64 // now; 0: no limit
}

func (l *limiter) stats(now time.Time) BandwidthStats {
	rate := l.rateAt(now)
	l.mu.Lock()
	defer l.mu.Unlock()
	return BandwidthStats{l.plan, rate}
}
