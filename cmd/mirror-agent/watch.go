package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

// watch shows the state again and again until ctx is cancelled: redrawn on a
// terminal, a line each time elsewhere. It ends with the agent.
func (a *app) watch(ctx context.Context, cl *control.Client, interval time.Duration, asJSON bool) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	if a.redraw && !asJSON {
		_, _ = io.WriteString(a.stdout, ansi.HideCursor+ansi.EraseEntireScreen)
		defer func() { _, _ = io.WriteString(a.stdout, ansi.ShowCursor) }()
	}
	var p past
	for {
		st, err := askStatus(ctx, cl)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		now := a.now()
		v := view{paint: paint(a.colour), now: now, before: p.status, beforeTime: p.time, past: &p}
		p.add(&st, now)
		switch {
		case asJSON:
			if err := json.NewEncoder(a.stdout).Encode(st); err != nil {
				return err
			}
		case a.redraw:
			var screen strings.Builder
			v.status(&screen, &st)
			a.draw(screen.String())
		default:
			a.printf("%s\n", v.line(&st))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// draw replaces what is on the terminal's screen. A line that is too long is cut: wrapped, it would push the others off their
// places; so are lines beyond the last row.
func (a *app) draw(screen string) {
	lines := strings.Split(strings.TrimSuffix(screen, "\n"), "\n")
	if width, height := a.screenSize(); width > 0 && height > 1 {
		if len(lines) > height-1 {
			lines = append(lines[:height-2:height-2], fmt.Sprintf("… %d more lines", len(lines)-height+2))
		}
		for i := range lines {
			lines[i] = ansi.Truncate(lines[i], width, "…")
		}
	}
	_, _ = io.WriteString(a.stdout, ansi.CursorHomePosition+strings.Join(lines, ansi.EraseLineRight+"\n")+ansi.EraseLineRight+"\n"+ansi.EraseScreenBelow)
}

// screenSize is 0, 0 where there is no terminal.
func (a *app) screenSize() (width, height int) {
	if a.size == nil {
		return 0, 0
	}
	return a.size()
}

// pastSamples are kept for the sparklines.
const pastSamples = 60

// past is what was seen before.
type past struct {
	status *mirror.Status // the last one
	time   time.Time
	began  time.Time
	rpo    map[string][]float64 // by follower, oldest first
}

// add takes a state.
func (p *past) add(st *mirror.Status, now time.Time) {
	if p.rpo == nil {
		p.rpo, p.began = map[string][]float64{}, now
	}
	for i := range st.Followers {
		f := &st.Followers[i]
		if f.Durable == 0 { // nothing there: no age
			continue
		}
		s := append(p.rpo[f.Target], f.RPOSeconds)
		p.rpo[f.Target] = s[max(len(s)-pastSamples, 0):]
	}
	p.status, p.time = st, now
}

// sparkline draws values with bars of eight heights, the highest for the greatest.
func sparkline(values []float64) string {
	const bars = "▁▂▃▄▅▆▇█"
	heights := []rune(bars)
	greatest := 0.0
	for _, x := range values {
		greatest = max(greatest, x)
	}
	var b strings.Builder
	for _, x := range values {
		i := 0
		if greatest > 0 {
			i = min(int(x/greatest*float64(len(heights)-1)+0.5), len(heights)-1)
		}
		b.WriteRune(heights[max(i, 0)])
	}
	return b.String()
}

// trend is the RPO of a follower over the last samples, "" without any.
func (v view) trend(target string) string {
	if v.past == nil || len(v.past.rpo[target]) < 2 {
		return ""
	}
	s := v.past.rpo[target]
	greatest := 0.0
	for _, x := range s {
		greatest = max(greatest, x)
	}
	return fmt.Sprintf("%s   %s at most", sparkline(s), formatSeconds(greatest))
}

// coming says how fast a follower that catches up comes nearer, and how long that takes.
func (v view) coming(f *mirror.FollowerStatus) string {
	if v.before == nil || f.State != string(mirror.FollowerCatchUp) {
		return ""
	}
	for i := range v.before.Followers {
		b := &v.before.Followers[i]
		if b.Target != f.Target {
			continue
		}
		rate := v.rate(b.LagBytes, f.LagBytes)
		if rate <= 0 {
			return "comes no nearer"
		}
		return fmt.Sprintf("comes nearer by %s/s, %s left", formatSize(uint64(rate)), formatSpan(time.Duration(float64(f.LagBytes)/rate*float64(time.Second))))
	}
	return ""
}

// pathRate is what a path has sent in a second since the last look; false without one.
func (v view) pathRate(who string, p *mirror.PathStatus) (float64, bool) {
	if v.before == nil {
		return 0, false
	}
	find := func(paths []mirror.PathStatus) (float64, bool) {
		for i := range paths {
			if paths[i].ID == p.ID && paths[i].BytesSent <= p.BytesSent {
				return v.rate(p.BytesSent, paths[i].BytesSent), true
			}
		}
		return 0, false
	}
	for i := range v.before.Followers {
		if v.before.Followers[i].Target == who {
			return find(v.before.Followers[i].Paths)
		}
	}
	if v.before.Source != nil && v.before.Source.Peer == who {
		return find(v.before.Source.Paths)
	}
	return 0, false
}

// resyncRate is how fast a resync goes: since the last look, or since it began.
func (v view) resyncRate(who string, p *mirror.Progress) float64 {
	var b *mirror.Progress
	if v.before != nil {
		for i := range v.before.Followers {
			if v.before.Followers[i].Target == who {
				b = v.before.Followers[i].Resync
			}
		}
		if v.before.Source != nil && v.before.Source.Peer == who {
			b = v.before.Source.Resync
		}
	}
	if b != nil && b.Started.Equal(p.Started) && p.DoneBytes > b.DoneBytes {
		return v.rate(uint64(p.DoneBytes), uint64(b.DoneBytes))
	}
	if spent := v.now.Sub(p.Started); spent > time.Second && p.DoneBytes > 0 && !p.Started.IsZero() {
		return float64(p.DoneBytes) / spent.Seconds()
	}
	return 0
}
