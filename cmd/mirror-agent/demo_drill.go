package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"mirror-agent/mirror"
)

const (
	drillWrites    = 500     // answered writes that make a step's load
	drillChunk     = 1 << 20 // of the comparison
	drillTailShare = 8       // the last 1/8 is written to while the source dies
	drillCutLoad   = 64 << 10

	// A step that takes longer does not hold; the story as a whole has its own.
	drillStepTimeout = 45 * time.Second
)

// drill is the story in progress.
type drill struct {
	*demo
	report report
	ledger *ledger
	writer *writer
	nbd    *nbdClient
	sums   [][sha256.Size]byte // of the source's chunks
	killed time.Time           // when the source was
	copy   *nbdClient          // of the promoted backup
	// connect opens an NBD connection that lives as long as the story.
	connect func(address string) (*nbdClient, error)
}

// drillStep is one step: what it is called and what it does. It returns a
// detail worth telling.
type drillStep struct {
	name string
	run  func(context.Context) (string, error)
}

// drill plays the story, prints each step, and returns an error when one does
// not hold.
func (d *demo) drill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.options.timeout)
	defer cancel()
	r := &drill{demo: d, ledger: newLedger(uint64(time.Now().UnixNano()))}
	r.report = report{Version: readVersion().Version, Size: d.options.size, Mode: d.options.mode, Steps: []stepResult{}}
	r.connect = func(address string) (*nbdClient, error) { return dialNBD(ctx, address, demoMirror) }
	defer r.release()
	began := time.Now()
	failed := r.play(ctx)
	r.report.Seconds = time.Since(began).Seconds()
	r.report.OK = failed == nil
	r.report.Writes, r.report.Answered = r.ledger.counts()
	if d.options.asJSON {
		if err := d.app.printJSON(r.report); err != nil {
			return err
		}
	} else {
		d.app.printf("%s", r.report.text(paint(d.app.colour)))
	}
	return failed
}

func (r *drill) play(ctx context.Context) error {
	p := paint(r.app.colour)
	if !r.options.asJSON {
		r.app.printf("drill of a mirror of %s, mode %s\n", formatSize(r.options.size), r.options.mode)
	}
	for _, s := range r.story() {
		began := time.Now()
		stepCtx, cancel := context.WithTimeout(ctx, drillStepTimeout)
		detail, err := s.run(stepCtx)
		cancel()
		result := stepResult{Name: s.name, OK: err == nil, Seconds: time.Since(began).Seconds(), Detail: detail}
		if err != nil {
			result.Detail = oneLine(err.Error())
		}
		r.report.Steps = append(r.report.Steps, result)
		if !r.options.asJSON {
			r.app.printf("%s\n", result.line(p))
		}
		if err != nil {
			return fmt.Errorf("drill, step %q: %w", s.name, err)
		}
	}
	return nil
}

func (r *drill) story() []drillStep {
	return []drillStep{
		{"start a source, a target and a backup", func(ctx context.Context) (string, error) { return "", r.start(ctx) }},
		{"the target is in sync", r.stepInSync},
		{"write a known pattern through NBD", r.stepWrite},
		{"cut a network path in mid-stream", r.stepCut},
		{"writes go on, nothing is lost", r.stepWritesGoOn},
		{"mend the path: it comes back by itself", r.stepMend},
		{"kill the target (SIGKILL): noticed", r.stepKillTarget},
		{"data flow moves to the backup, in sync", r.stepSwitched},
		{"flush, read the source's device", r.stepReadSource},
		{"kill the source (SIGKILL) while it writes", r.stepKillSource},
		{"promote the backup, first read", r.stepPromote},
		{"the backup's device is equal, byte for byte", r.stepCompare},
		{"every promise of the source is kept", r.stepJudge},
		{"the backup takes writes", r.stepWriteAgain},
		{"clean end", r.stepEnd},
	}
}

// release frees what the drill itself holds; the demo ends the processes.
func (r *drill) release() {
	if r.writer != nil {
		r.writer.cancel()
	}
	for _, c := range []*nbdClient{r.nbd, r.copy} {
		if c != nil {
			c.Close()
		}
	}
	if r.writer != nil {
		r.writer.halt()
	}
}

func (r *drill) stepInSync(ctx context.Context) (string, error) {
	st, err := r.source.until(ctx, "in sync", func(st *mirror.Status) bool {
		return inSync("target")(st) && activePaths(followerOf(st, "target")) >= 2
	})
	return fmt.Sprintf("%d paths", activePaths(followerOf(&st, "target"))), err
}

// tail is where the last part of the device begins, in bytes.
func (r *drill) tail() int64 {
	return r.options.size / drillChunk * (drillTailShare - 1) / drillTailShare * drillChunk
}

func (r *drill) stepWrite(ctx context.Context) (detail string, err error) {
	if r.nbd, err = r.connect(r.source.nbd); err != nil {
		return "", err
	}
	if r.nbd.size != r.options.size {
		return "", fmt.Errorf("the export has %d bytes, %d are expected", r.nbd.size, r.options.size)
	}
	r.writer = startWriter(r.nbd, r.ledger, 0, r.tail())
	if err := r.load(ctx); err != nil {
		return "", err
	}
	_, answered := r.ledger.counts()
	return fmt.Sprintf("%d writes acknowledged, %d in flight at a time", answered, writerDepth), nil
}

// load waits for some more writes, and a FLUSH after them.
func (r *drill) load(ctx context.Context) error {
	_, start := r.ledger.counts()
	err := r.until(ctx, func() bool { _, n := r.ledger.counts(); return n >= start+drillWrites })
	if err != nil {
		return err
	}
	now := time.Now()
	return r.until(ctx, func() bool { return r.writer.flushedSince(now) })
}

// until polls until ok, unless the writer has failed.
func (r *drill) until(ctx context.Context, ok func() bool) error {
	for !ok() {
		if err := r.writer.failed(); err != nil {
			return err
		}
		wait(ctx, pollPause)
		if ctx.Err() != nil {
			_, n := r.ledger.counts()
			return fmt.Errorf("the application waits after %d acknowledged writes: %s", n, outOfTime(ctx))
		}
	}
	return nil
}

// watch polls the source until ok; a failed writer fails the step too.
func (r *drill) watch(ctx context.Context, what string, ok func(*mirror.Status) bool) (mirror.Status, error) {
	st, err := r.source.until(ctx, what, func(st *mirror.Status) bool { return r.writer.failed() != nil || ok(st) })
	return st, errors.Join(r.writer.failed(), err)
}

func (r *drill) stepCut(ctx context.Context) (string, error) {
	// The scheduler may have favoured the other path so far; the application writes on.
	if err := r.until(ctx, func() bool { return r.proxy.bytes.Load() >= drillCutLoad }); err != nil {
		return "", fmt.Errorf("the path to be cut has carried only %s: %w", formatSize(r.proxy.bytes.Load()), err)
	}
	st, err := r.source.status(ctx)
	if err != nil {
		return "", err
	}
	before := activePaths(followerOf(&st, "target"))
	r.writer.measure()
	carried := r.proxy.bytes.Load()
	cut := time.Now()
	r.proxy.sever()
	_, err = r.watch(ctx, "cut path noticed", func(st *mirror.Status) bool { return activePaths(followerOf(st, "target")) < before })
	r.report.PathDetection = time.Since(cut).Seconds()
	return fmt.Sprintf("silently, after %s over it", formatSize(carried)), err
}

func (r *drill) stepWritesGoOn(ctx context.Context) (string, error) {
	if err := r.load(ctx); err != nil {
		return "", err
	}
	gap, flush := r.writer.measure()
	r.report.WritePause = gap.Seconds()
	_, err := r.watch(ctx, "the target follows over the other path", inSync("target"))
	return fmt.Sprintf("longest pause of writes %s, of a flush %s", formatSeconds(gap.Seconds()), formatSeconds(flush.Seconds())), err
}

func (r *drill) stepMend(ctx context.Context) (string, error) {
	r.proxy.mend()
	st, err := r.watch(ctx, "path back", func(st *mirror.Status) bool { return activePaths(followerOf(st, "target")) >= 2 })
	return fmt.Sprintf("%d paths", activePaths(followerOf(&st, "target"))), err
}

func (r *drill) stepKillTarget(ctx context.Context) (string, error) {
	r.writer.measure()
	r.killed = r.target.kill()
	st, err := r.watch(ctx, "dead target noticed", func(st *mirror.Status) bool { return !inSync("target")(st) })
	r.report.Detection = time.Since(r.killed).Seconds()
	if f := followerOf(&st, "target"); f != nil && f.Reason != "" {
		return f.State + ": " + f.Reason, err
	}
	return "", err
}

func (r *drill) stepSwitched(ctx context.Context) (string, error) {
	if _, err := r.watch(ctx, "switch-over to the backup", inSync("backup")); err != nil {
		return "", err
	}
	r.report.Switch = time.Since(r.killed).Seconds()
	if err := r.load(ctx); err != nil {
		return "", err
	}
	gap, flush := r.writer.measure()
	return fmt.Sprintf("longest pause of writes %s, of a flush %s", formatSeconds(gap.Seconds()), formatSeconds(flush.Seconds())), nil
}

func (r *drill) stepReadSource(ctx context.Context) (detail string, err error) {
	if err := r.writer.stop(); err != nil {
		return "", err
	}
	r.sums, err = checksums(ctx, r.nbd, r.tail())
	return "SHA-256 of " + formatSize(r.tail()), err
}

// checksums reads [0, to) in chunks.
func checksums(ctx context.Context, from io.ReaderAt, to int64) ([][sha256.Size]byte, error) {
	var sums [][sha256.Size]byte
	buf := make([]byte, drillChunk)
	for off := int64(0); off < to; off += drillChunk {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if _, err := from.ReadAt(buf, off); err != nil {
			return nil, err
		}
		sums = append(sums, sha256.Sum256(buf))
	}
	return sums, nil
}

func (r *drill) stepKillSource(ctx context.Context) (string, error) {
	r.writer = startWriter(r.nbd, r.ledger, r.tail(), r.options.size)
	_, before := r.ledger.counts()
	if err := r.load(ctx); err != nil {
		return "", err
	}
	r.killed = r.source.kill()
	r.writer.halt()
	_, after := r.ledger.counts()
	return fmt.Sprintf("%d more writes acknowledged until then", after-before), nil
}

func (r *drill) stepPromote(ctx context.Context) (string, error) {
	ordered := time.Now()
	// The operator knows what the backup cannot: both others are dead.
	o := mirror.PromoteOptions{NBD: r.backup.nbd, Force: true}
	r.report.Forced = true
	result, err := r.backup.client.Promote(ctx, o)
	if err != nil {
		return "", err
	}
	if r.copy, err = r.connect(result.NBD); err != nil {
		return "", err
	}
	if _, err := r.copy.ReadAt(make([]byte, ledgerBlock), 0); err != nil {
		return "", err
	}
	r.report.RTO = time.Since(ordered).Seconds()
	return "generation " + result.Generation + ", forced: the only one of three that is left", nil
}

func (r *drill) stepCompare(ctx context.Context) (string, error) {
	sums, err := checksums(ctx, r.copy, r.tail())
	if err != nil {
		return "", err
	}
	different := 0
	for i := range sums {
		if sums[i] != r.sums[i] {
			different++
		}
	}
	if different > 0 {
		return "", fmt.Errorf("%d of %d chunks of %s differ", different, len(sums), formatSize(int64(drillChunk)))
	}
	return formatSize(r.tail()), nil
}

func (r *drill) stepJudge(context.Context) (string, error) {
	v, err := r.ledger.judge(r.copy)
	if err != nil {
		return "", err
	}
	r.report.Checked, r.report.LostFlushed, r.report.LostAnswered = v.Blocks, v.LostFlushed, v.LostAnswered
	if !v.OldestLost.IsZero() {
		r.report.RPO = max(r.killed.Sub(v.OldestLost).Seconds(), 0)
	}
	return fmt.Sprintf("%d blocks, RPO %s", v.Blocks, formatSeconds(r.report.RPO)), v.err(r.options.mode != string(mirror.ModeAsync))
}

func (r *drill) stepWriteAgain(ctx context.Context) (string, error) {
	r.writer = startWriter(r.copy, r.ledger, 0, r.tail())
	if err := r.load(ctx); err != nil {
		return "", err
	}
	return "", r.writer.stop()
}

func (r *drill) stepEnd(context.Context) (string, error) {
	r.copy.Close()
	return "", r.backup.end()
}
