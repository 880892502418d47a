package main

import (
	"testing"
	"time"
)

func TestCable(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	type frame struct {
		at     time.Duration
		n      int
		chance float64
		want   time.Duration // -1: lost
	}
	for _, test := range []struct {
		name   string
		c      cable
		frames []frame
	}{
		{"nothing", cable{}, []frame{{0, 1500, 0.5, 0}, {time.Second, 1500, 0.5, time.Second}}},
		{"delay", cable{delay: 15 * time.Millisecond}, []frame{{0, 1500, 0.5, 15 * time.Millisecond}, {1, 64000, 0.5, 15*time.Millisecond + 1}}},
		{"rate", cable{rate: 1000, queue: 500}, []frame{
			{0, 100, 0.5, 100 * time.Millisecond},
			{0, 100, 0.5, 200 * time.Millisecond},                      // waits for the first
			{150 * time.Millisecond, 100, 0.5, 300 * time.Millisecond}, // for the second
			{time.Second, 100, 0.5, 1100 * time.Millisecond},           // it was idle: no credit from then
		}},
		{"rate and delay", cable{rate: 1000, queue: 500, delay: time.Second}, []frame{{0, 100, 0.5, 1100 * time.Millisecond}}},
		{"queue", cable{rate: 1000, queue: 250}, []frame{
			{0, 1000, 0.5, time.Second}, // longer than the queue, but nothing waits
			{0, 100, 0.5, -1},
			{900 * time.Millisecond, 100, 0.5, 1100 * time.Millisecond}, // 100 still leave, 100 fit
			{900 * time.Millisecond, 100, 0.5, -1},
		}},
		{"loss", cable{loss: 0.1}, []frame{{0, 100, 0.05, -1}, {0, 100, 0.1, 0}, {0, 100, 0.9, 0}}},
		{"cut", cable{cut: true}, []frame{{0, 100, 0.9, -1}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for i, f := range test.frames {
				got, ok := test.c.carry(at(f.at), f.n, f.chance)
				if ok != (f.want >= 0) || ok && !got.Equal(at(f.want)) {
					t.Errorf("frame %d arrives at %v (%v), want %v", i, got.Sub(start), ok, f.want)
				}
			}
		})
	}
}

func TestSet(t *testing.T) {
	for _, test := range []struct {
		word, value string
		want        cable
		bad         bool
	}{
		{word: "delay", value: "15ms", want: cable{delay: 15 * time.Millisecond}},
		{word: "delay", value: "-15ms", bad: true},
		{word: "loss", value: "0.25", want: cable{loss: 0.25}},
		{word: "loss", value: "1.1", bad: true},
		{word: "rate", value: "100mbit", want: cable{rate: 12.5e6}},
		{word: "rate", value: "10kbps", want: cable{rate: 10e3}},
		{word: "rate", value: "0", want: cable{}},
		{word: "rate", value: "fast", bad: true},
		{word: "rate", value: "1furlong", bad: true},
		{word: "queue", value: "256KiB", want: cable{queue: 256 << 10}},
		{word: "queue", value: "0", bad: true},
		{word: "cut", value: "a>b", want: cable{cut: true}},
		{word: "cut", value: "b>a", want: cable{}},
		{word: "cut", value: "some", bad: true},
		{word: "colour", value: "red", bad: true},
	} {
		var ab, ba cable
		err := set(&ab, &ba, test.word, test.value)
		if (err != nil) != test.bad || ab != test.want {
			t.Errorf("%s %s: %+v, %v", test.word, test.value, ab, err)
		}
		if !test.bad && ba.cut != (test.value == "b>a") {
			t.Errorf("%s %s: the other way %+v", test.word, test.value, ba)
		}
	}
}
