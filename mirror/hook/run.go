package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"mirror-agent/mirror"
)

const (
	// QueueLength is how many events may wait for one hook.
	QueueLength = 64
	// EndGrace is how long hooks go on after the agent has ended.
	EndGrace = 5 * time.Second

	maxOutputBytes = 16 << 10 // of one command, in the log
	pipeGrace      = time.Second
)

// Source is what is followed; *mirror.Agent is one.
type Source interface {
	Events(after uint64) ([]mirror.Event, <-chan struct{})
}

// Runner runs hooks. Make it with New, set it to work with Run.
type Runner struct {
	source  Source
	queues  []*queue
	control string
	log     zerolog.Logger
	grace   time.Duration
}

// New returns a runner of hooks that were validated. control is the agent's socket, for the hooks' own commands.
func New(source Source, hooks []Hook, control string, log zerolog.Logger) *Runner {
	r := &Runner{source: source, control: control, log: log, grace: EndGrace}
	for _, h := range hooks {
		kinds, _ := Expand(h.On)
		r.queues = append(r.queues, &queue{hook: h, kinds: kinds, more: make(chan struct{}, 1)})
	}
	return r
}

// Counts says what has become of the events of one hook.
type Counts struct {
	Events string // what it is run on, as configured
	Done   uint64
	Failed uint64 // could not be started, or ended with a status other than 0
	Killed uint64 // took longer than its timeout
	Missed uint64 // lost unseen, because it was too slow
}

// Counts returns those of all hooks since New, in their order. It may be called at any time.
func (r *Runner) Counts() []Counts {
	all := make([]Counts, len(r.queues))
	for i, q := range r.queues {
		q.mu.Lock()
		all[i] = q.counts
		q.mu.Unlock()
		all[i].Events = strings.Join(q.hook.On, ",")
	}
	return all
}

// Run follows the events, those from before it too, until ctx is done; then it waits for what is queued, EndGrace at most.
func (r *Runner) Run(ctx context.Context) {
	if len(r.queues) == 0 {
		return
	}
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var workers sync.WaitGroup
	for _, q := range r.queues {
		workers.Go(func() { r.work(work, q) })
	}
	var after uint64
	for ended := false; ; {
		last := ended // all that was told before the end is there by now
		list, changed := r.source.Events(after)
		for _, e := range list {
			after = max(after, e.Sequence)
			for _, q := range r.queues {
				if q.wants(e.Kind) && q.put(e) {
					r.log.Warn().Str("hook", q.name()).Str("event", e.Kind).Msg("the hook is too slow: the oldest event that waited for it is lost")
				}
			}
		}
		if last {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			ended = true
		}
	}
	for _, q := range r.queues {
		q.close()
	}
	kill := time.AfterFunc(r.grace, stop)
	defer kill.Stop()
	workers.Wait()
}

// work runs q's hook for each of its events.
func (r *Runner) work(ctx context.Context, q *queue) {
	for {
		e, missed, ok := q.take()
		if !ok {
			return
		}
		if count := r.runOne(ctx, q, e, missed); count != nil {
			q.mu.Lock()
			*count++
			q.mu.Unlock()
		}
	}
}

// told is what a command gets.
type told struct {
	mirror.Event
	Missed int `json:"missed"` // events that this hook did not get since the one before
}

// runOne returns which count of q goes up; nil when the agent has ended.
func (r *Runner) runOne(ctx context.Context, q *queue, e mirror.Event, missed int) *uint64 {
	h := &q.hook
	log := r.log.With().Str("hook", h.Run[0]).Str("event", e.Kind).Uint64("sequence", e.Sequence).Logger()
	line, err := json.Marshal(told{e, missed})
	if err != nil {
		log.Error().Err(err).Msg("hook not run")
		return &q.counts.Failed
	}
	limit, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	c := exec.CommandContext(limit, h.Run[0], h.Run[1:]...)
	c.Stdin = bytes.NewReader(append(line, '\n'))
	c.Env = append(os.Environ(), r.environment(e)...)
	out := &bounded{most: maxOutputBytes}
	c.Stdout, c.Stderr = out, out
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = pipeGrace
	began := time.Now()
	err = c.Run()
	took := time.Since(began)
	for s := range strings.Lines(out.String()) {
		if s = strings.TrimRight(s, "\r\n"); s != "" {
			log.Info().Msg("hook says: " + s)
		}
	}
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // it has left something behind that holds its output
		log.Debug().Dur("took", took).Msg("hook done")
		return &q.counts.Done
	case ctx.Err() != nil:
		log.Warn().Msg("hook killed: the agent has ended")
		return nil
	case limit.Err() != nil:
		log.Warn().Dur("timeout", h.Timeout).Msg("hook killed: it took too long")
		return &q.counts.Killed
	}
	log.Warn().Err(err).Msg("hook failed")
	return &q.counts.Failed
}

// environment is what a command finds beside the agent's own. MIRROR_AGENT_CONTROL lets it ask the agent: mirror-agent status.
func (r *Runner) environment(e mirror.Event) []string {
	return []string{
		"MIRROR_AGENT_CONTROL=" + r.control,
		"MIRROR_NAME=" + e.Mirror,
		"MIRROR_EVENT=" + e.Kind,
		"MIRROR_EVENT_TARGET=" + e.Target,
		"MIRROR_EVENT_TEXT=" + strings.ReplaceAll(e.Text, "\x00", ""),
	}
}

// queue holds what waits for one hook.
type queue struct {
	hook  Hook
	kinds map[string]bool // nil is every kind
	more  chan struct{}   // a signal to take, capacity 1

	mu     sync.Mutex // guards all below
	events []mirror.Event
	missed int
	counts Counts // Events is empty
	closed bool
}

func (q *queue) name() string { return q.hook.Run[0] }

func (q *queue) wants(kind string) bool { return q.kinds == nil || q.kinds[kind] }

// put adds an event, and says whether another one was lost for it.
func (q *queue) put(e mirror.Event) (lost bool) {
	q.mu.Lock()
	if lost = len(q.events) == QueueLength; lost {
		q.events = q.events[1:]
		q.missed++
		q.counts.Missed++
	}
	q.events = append(q.events, e)
	q.mu.Unlock()
	q.signal()
	return lost
}

func (q *queue) signal() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// take waits for the next event; false when there will be none.
func (q *queue) take() (e mirror.Event, missed int, ok bool) {
	for {
		q.mu.Lock()
		if len(q.events) > 0 {
			e, q.events = q.events[0], q.events[1:]
			missed, q.missed = q.missed, 0
			q.mu.Unlock()
			return e, missed, true
		}
		closed := q.closed
		q.mu.Unlock()
		if closed {
			return e, 0, false
		}
		<-q.more
	}
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.signal()
}

// bounded keeps the first bytes of what is written and says that there was more. Only one goroutine writes at a time.
type bounded struct {
	b    bytes.Buffer
	most int
	over bool
}

func (w *bounded) Write(p []byte) (int, error) {
	if room := w.most - w.b.Len(); len(p) > room {
		w.b.Write(p[:max(room, 0)])
		w.over = true
	} else {
		w.b.Write(p)
	}
	return len(p), nil
}

func (w *bounded) String() string {
	if w.over {
		return w.b.String() + "\n… and more than the log takes"
	}
	return w.b.String()
}
