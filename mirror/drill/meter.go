package drill

import (
	"context"
	"time"

	"mirror-agent/mirror"
)

const (
	sampleEvery = 500 * time.Millisecond
	maxSamples  = 2000
)

// meter watches what the mirror does while a drill runs.
type meter struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func startMeter(d *drill) *meter {
	ctx, cancel := context.WithCancel(context.Background())
	m := &meter{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(m.done)
		m.run(ctx, d)
	}()
	return m
}

// run adds samples to the report, which is this goroutine's until stop returns. When there are many every second one goes, and they
// become rarer.
func (m *meter) run(ctx context.Context, d *drill) {
	every := sampleEvery
	for {
		if st, err := d.Agent.Status(ctx); err == nil {
			d.r.Samples = append(d.r.Samples, sampleOf(&st, time.Since(d.began).Seconds()))
			if n := len(d.r.Samples); n >= maxSamples {
				for i := range n / 2 {
					d.r.Samples[i] = d.r.Samples[2*i]
				}
				d.r.Samples = d.r.Samples[:n/2]
				every *= 2
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		}
	}
}

func (m *meter) stop() {
	m.cancel()
	<-m.done
}

func sampleOf(st *mirror.Status, at float64) Sample {
	s := Sample{At: at, UnappliedBytes: int64(st.Log.Head - st.Log.Applied)}
	if st.Drill != nil {
		s.ScratchBytes = st.Drill.ScratchBytes
	}
	if st.Source != nil && st.Source.SourceHead > st.Log.Durable {
		s.LagBytes = int64(st.Source.SourceHead - st.Log.Durable)
	}
	for i := range st.Followers {
		if st.Followers[i].Active {
			s.LagBytes = int64(st.Followers[i].LagBytes)
		}
	}
	return s
}
