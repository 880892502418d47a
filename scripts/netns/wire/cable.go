package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// cable is one direction: what it does to frames, and when it is free again.
type cable struct {
	delay time.Duration
	loss  float64 // 0 … 1
	rate  float64 // bytes per second; 0: no limit
	queue int     // bytes that may wait when the rate is limited
	cut   bool
	free  time.Time // when everything so far has left
}

// defaultQueue is what waits at most: a router's modest buffer.
const defaultQueue = 1 << 20

// carry says when a frame of n bytes that came at now arrives at the other end, and whether it does. chance is a random
// number in [0, 1).
func (c *cable) carry(now time.Time, n int, chance float64) (arrives time.Time, ok bool) {
	if c.cut || chance < c.loss {
		return time.Time{}, false
	}
	if c.rate <= 0 {
		c.free = now
		return now.Add(c.delay), true
	}
	if c.free.Before(now) {
		c.free = now
	}
	// The one that is leaving right now does not wait: a frame longer than the queue passes when the cable is free.
	if waits := c.free.Sub(now).Seconds() * c.rate; waits > 0 && int(waits)+n > c.queue {
		return time.Time{}, false
	}
	c.free = c.free.Add(time.Duration(float64(n) / c.rate * float64(time.Second)))
	return c.free.Add(c.delay), true
}

// set changes one property of both directions, in the words of a command line and of standard input.
func set(ab, ba *cable, word, value string) (err error) {
	var n float64
	switch word {
	case "delay":
		d, err := time.ParseDuration(value)
		if err != nil || d < 0 {
			return fmt.Errorf("delay %q: want a duration like 15ms", value)
		}
		ab.delay, ba.delay = d, d
	case "loss":
		if n, err = strconv.ParseFloat(value, 64); err != nil || n < 0 || n > 1 {
			return fmt.Errorf("loss %q: want a part of one, like 0.001", value)
		}
		ab.loss, ba.loss = n, n
	case "rate":
		if n, err = parseRate(value); err != nil {
			return err
		}
		ab.rate, ba.rate = n, n
		ab.free, ba.free = time.Time{}, time.Time{} // what waits at the old rate has its time already
	case "queue":
		if n, err = suffixed(value, map[string]float64{"": 1, "kib": 1 << 10, "mib": 1 << 20}); err != nil || n < 1 || n > 1<<30 {
			return fmt.Errorf("queue %q: want bytes, like 256KiB or 4MiB", value)
		}
		ab.queue, ba.queue = int(n), int(n)
	case "cut":
		switch value {
		case "none", "a>b", "b>a", "both":
			ab.cut, ba.cut = value == "a>b" || value == "both", value == "b>a" || value == "both"
		default:
			return fmt.Errorf("cut %q: want none, a>b, b>a or both", value)
		}
	default:
		return fmt.Errorf("%q: want delay, loss, rate, queue or cut", word)
	}
	return nil
}

// parseRate takes the words of tc: bits per second with kbit, mbit, gbit; bytes with kbps, mbps. The result is in bytes.
func parseRate(s string) (float64, error) {
	n, err := suffixed(s, map[string]float64{"": 1. / 8, "bit": 1. / 8, "kbit": 1e3 / 8, "mbit": 1e6 / 8, "gbit": 1e9 / 8, "bps": 1, "kbps": 1e3, "mbps": 1e6})
	if err != nil || n < 0 {
		return 0, fmt.Errorf("rate %q: want a rate like 100mbit or 10kbps (bytes), 0 for no limit", s)
	}
	return n, nil
}

func suffixed(s string, units map[string]float64) (float64, error) {
	s = strings.ToLower(s)
	i := strings.LastIndexAny(s, "0123456789.") + 1
	unit, ok := units[s[i:]]
	n, err := strconv.ParseFloat(s[:i], 64)
	if !ok || err != nil {
		return 0, fmt.Errorf("%q is no number with a known unit", s)
	}
	return n * unit, nil
}
