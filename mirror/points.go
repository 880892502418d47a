package mirror

import (
	"errors"
	"fmt"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"mirror-agent/journal"
)

// Points in time: between applied and head a volume's log has every record, so the volume can be shown as it was after any
// one of them (view.go), and go back there (goBack). How far that reaches is what the applier is held back for (retain.go).

// Point is a place in the order of writes.
type Point struct {
	LSN uint64 `json:"lsn"`
	// Time of the newest record below; zero when the log does not have it.
	Time time.Time `json:"time,omitzero"`
}

func (p Point) String() string {
	if p.Time.IsZero() {
		return fmt.Sprintf("LSN %d", p.LSN)
	}
	return fmt.Sprintf("LSN %d (%s)", p.LSN, p.Time.UTC().Format(pointTime))
}

// pointTime is how points are told: the operator can say it back.
const pointTime = "2006-01-02T15:04:05.000Z07:00"

// Window is what a volume can go back to: every point between two, both included.
type Window struct {
	From Point `json:"from"`
	To   Point `json:"to"`
}

// pointSpec is a point as the operator says it; the zero value is the newest.
type pointSpec struct {
	word       string
	lsn        journal.LSN
	time       time.Time
	checkpoint string
}

// CheckPoint reports a word that is no point.
func CheckPoint(word string) error {
	_, err := parsePoint(word)
	return err
}

func parsePoint(word string) (pointSpec, error) {
	s := pointSpec{word: word}
	kind, rest, _ := strings.Cut(word, ":")
	var err error
	switch kind {
	case "":
		if word != "" {
			err = errors.New("no kind of point")
		}
	case "lsn":
		var n uint64
		if n, err = strconv.ParseUint(rest, 10, 63); err == nil && n == 0 {
			err = errors.New("0 is no LSN")
		}
		s.lsn = journal.LSN(n)
	case "checkpoint":
		s.checkpoint, err = rest, validCheckpoint(rest)
	default:
		s.time, err = time.Parse(time.RFC3339, word)
		if err != nil {
			err = errors.New("no time of RFC 3339")
		}
	}
	if err != nil {
		return s, fmt.Errorf("point %q: %w; say a time like 2026-11-22T20:15:00Z, lsn:NUMBER or checkpoint:NAME", word, err)
	}
	return s, nil
}

// OutsideError refuses a point that the volume cannot go back to.
type OutsideError struct {
	Point  string
	Window Window
}

func (e *OutsideError) Error() string {
	return fmt.Sprintf("refused: %s is outside of what this host can go back to: %s to %s; --retain-time and a larger log keep more", e.Point, e.Window.From, e.Window.To)
}

func (v *Volume) outside(what string) error {
	w, err := v.window()
	if err != nil {
		return err
	}
	return &OutsideError{what, w}
}

// window is what v can go back to now.
func (v *Volume) window() (Window, error) {
	for {
		first, head := v.firstPoint(), v.log.Head()
		from, err := v.timeBefore(first)
		if err != nil {
			return Window{}, err
		}
		to, err := v.timeBefore(head)
		if err != nil {
			return Window{}, err
		}
		if v.firstPoint() == first {
			return Window{Point{uint64(first), from}, Point{uint64(head), to}}, nil
		}
	}
}

// timeBefore is when the newest record below a boundary was made; zero when the log does not have it.
func (v *Volume) timeBefore(at journal.LSN) (t time.Time, err error) {
	if at == 0 {
		return t, nil
	}
	p, _, err := v.log.BoundaryBefore(at - 1)
	if errors.Is(err, journal.ErrGone) {
		return t, nil
	}
	if err == nil {
		err = v.log.Scan(p, at, func(r journal.Record) error {
			t = time.Unix(0, r.Time)
			return nil
		})
	}
	if errors.Is(err, journal.ErrGone) || errors.Is(err, journal.ErrCut) || errors.Is(err, journal.ErrBeyondHead) {
		return time.Time{}, nil
	}
	return t, v.journalError(err)
}

// resolve finds the record boundary that is meant, in the window of now.
func (v *Volume) resolve(s pointSpec, now time.Time) (Point, error) {
	var at journal.LSN
	var err error
	head := v.log.Head()
	switch {
	case s.word == "":
		at = head
	case s.lsn != 0:
		at, err = v.boundaryAt(s.lsn, head)
	case s.checkpoint != "":
		at, err = v.checkpointEnd(s.checkpoint)
	default:
		at, err = v.boundaryOf(s, now, head)
	}
	if err != nil {
		return Point{}, err
	}
	if at < v.firstPoint() || at > head {
		return Point{}, v.outside(s.word)
	}
	t, err := v.timeBefore(at)
	return Point{uint64(at), t}, err
}

// boundaryAt is the end of the last record that ends at or below lsn.
func (v *Volume) boundaryAt(lsn, head journal.LSN) (journal.LSN, error) {
	if lsn < v.firstPoint() || lsn > head {
		return lsn, nil // outside
	}
	at, _, err := v.log.BoundaryBefore(lsn)
	if err == nil && at < lsn {
		err = v.log.Scan(at, head, func(r journal.Record) error {
			if r.End() > lsn {
				return errFound
			}
			at = r.End()
			return nil
		})
	}
	return at, found(err)
}

// errFound ends a scan that has seen enough.
var errFound = errors.New("found")

func found(err error) error {
	if errors.Is(err, errFound) {
		return nil
	}
	return err
}

// checkpointEnd is the end of the newest checkpoint of a name.
func (v *Volume) checkpointEnd(name string) (journal.LSN, error) {
	all, err := v.Checkpoints()
	if err != nil {
		return 0, err
	}
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].Name == name {
			return journal.LSN(all[i].end()), nil
		}
	}
	return 0, fmt.Errorf("refused: the log of this host has no checkpoint %q: mirror-agent checkpoint list", name)
}

// boundaryOf is where the first record after a time begins, by the source's clock.
func (v *Volume) boundaryOf(s pointSpec, now time.Time, head journal.LSN) (journal.LSN, error) {
	least := v.firstPoint()
	after := func(r journal.Record) bool { return time.Unix(0, r.Time).After(s.time) }
	newest, err := v.timeBefore(head)
	switch {
	case err != nil:
		return 0, err
	case newest.IsZero():
		return 0, v.outside(s.word)
	case !newest.After(s.time):
		if s.time.After(now) {
			return 0, fmt.Errorf("refused: %s is in the future: this host's clock shows %s", s.word, now.UTC().Format(pointTime))
		}
		return head, nil
	}
	before, err := v.timeBefore(least)
	if err != nil {
		return 0, err
	}
	// From the last indexed boundary whose record is not after the time, or from least.
	const step = 256 << 10
	first := func(at journal.LSN) (late bool) {
		err = errors.Join(err, found(v.log.Scan(at, head, func(r journal.Record) error {
			late = after(r)
			return errFound
		})))
		return late
	}
	from := least
	if n := sort.Search(int((head-least)/step), func(i int) bool {
		at, _, berr := v.log.BoundaryBefore(least + journal.LSN(i+1)*step)
		return berr != nil || at > least && first(at)
	}); n > 0 && err == nil {
		if from, _, err = v.log.BoundaryBefore(least + journal.LSN(n)*step); err == nil {
			from = max(from, least)
		}
	}
	at := from
	if err == nil {
		err = found(v.log.Scan(from, head, func(r journal.Record) error {
			if after(r) {
				return errFound
			}
			at = r.End()
			return nil
		}))
	}
	if err != nil {
		return 0, v.journalError(err)
	}
	if at == least && (before.IsZero() || before.After(s.time)) {
		return 0, v.outside(s.word)
	}
	return at, nil
}

// GivenUp is what a promotion to a point leaves behind: the records from there on.
type GivenUp struct {
	From    Point   `json:"from"`
	To      Point   `json:"to"`
	Bytes   int64   `json:"bytes"`   // of log
	Seconds float64 `json:"seconds"` // between the newest records below both
	Export  *Export `json:"export,omitempty"`
}

func (g GivenUp) String() string {
	s := fmt.Sprintf("%d bytes of log after %s are given up, %s up to %s", g.Bytes, g.From, time.Duration(g.Seconds*float64(time.Second)).Round(time.Millisecond), g.To)
	if g.Export != nil {
		s += fmt.Sprintf("; they are in %s", g.Export.Path)
	}
	return s
}

// givingUp says what a return to p would give up; nil when nothing lies behind it.
func (v *Volume) givingUp(p Point) (*GivenUp, error) {
	head := v.log.Head()
	t, err := v.timeBefore(head)
	if err != nil || journal.LSN(p.LSN) >= head {
		return nil, err
	}
	g := &GivenUp{From: p, To: Point{uint64(head), t}, Bytes: int64(uint64(head) - p.LSN)}
	if !p.Time.IsZero() && !t.IsZero() {
		g.Seconds = max(0, t.Sub(p.Time).Seconds())
	}
	return g, nil
}

// goBack takes a volume that nobody feeds back to p: what lies behind is in a durable file at path before it is cut, committed or
// not. What is applied stays, and so does what a crash left half applied: p is not below that.
func (v *Volume) goBack(p Point, path, node string) (*GivenUp, error) {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	at := journal.LSN(p.LSN)
	if at < v.firstPoint() || at > v.log.Head() {
		return nil, v.outside(p.String())
	}
	g, err := v.givingUp(p)
	if err != nil || g == nil {
		return nil, err
	}
	e, err := v.export(path, node, "what came after the point that this volume was promoted at", at)
	if err != nil {
		return nil, fmt.Errorf("%w; nothing was given up", err)
	}
	g.Export = &e
	return g, v.cutLocked(at)
}

// exportPath is where records go that are about to be given up.
func (c *Config) exportPath(now time.Time) (string, error) {
	if path := c.beside(""); path != "" {
		return filepath.Join(filepath.Dir(path), fmt.Sprintf("divergence-%s-%s.log", c.Name, now.UTC().Format("20060102T150405Z"))), nil
	}
	return "", fmt.Errorf("refused: there is no directory for what would be given up: %w", errNoPlace)
}

func lsnOf(p Point) journal.LSN { return journal.LSN(p.LSN) }

// Window is what this host can go back to now.
func (a *Agent) Window() (Window, error) { return a.v.window() }

// wayBack is what a promotion has to do to get to the point that it was asked for.
type wayBack struct {
	at      Point
	asked   bool
	path    string // of the export
	givenUp *GivenUp
}

// wayBack finds out, and changes nothing.
func (a *Agent) wayBack(word string) (b wayBack, err error) {
	if word == "" {
		b.at.LSN = uint64(a.v.log.Head())
		return b, nil
	}
	s, err := parsePoint(word)
	if err != nil {
		return b, err
	}
	now := time.Now()
	if b.at, err = a.v.resolve(s, now); err != nil {
		return b, err
	}
	b.asked = true
	if b.path, err = a.c.exportPath(now); err != nil {
		return b, err
	}
	b.givenUp, err = a.v.givingUp(b.at)
	return b, err
}

// goBack goes there. Nobody feeds the volume any more.
func (b *wayBack) goBack(a *Agent) (err error) {
	if !b.asked {
		return nil
	}
	if b.givenUp, err = a.v.goBack(b.at, b.path, a.node); err == nil && b.givenUp != nil {
		a.event("went-back", "", "%s", b.givenUp)
	}
	return err
}
