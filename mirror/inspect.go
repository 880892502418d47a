package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// What a log says to somebody who only wants to look: a journal that no agent uses, or an excerpt of one.

// LogReport describes a log file.
type LogReport struct {
	Path        string       `json:"path"`
	Kind        string       `json:"kind"` // "journal" or "excerpt"
	Mirror      string       `json:"mirror"`
	Name        string       `json:"name"`
	Node        string       `json:"node,omitempty"` // of an excerpt: whose log it was
	Role        string       `json:"role,omitempty"`
	DeviceSize  int64        `json:"device_size"`
	Generations []string     `json:"generations"`
	From        uint64       `json:"from"` // first record
	Applied     uint64       `json:"applied,omitempty"`
	Head        uint64       `json:"head"` // end of the last one
	Clean       bool         `json:"clean,omitempty"`
	Created     time.Time    `json:"created,omitzero"`
	Reason      string       `json:"reason,omitempty"`
	Records     uint64       `json:"records"`
	Writes      uint64       `json:"writes"`
	WriteBytes  uint64       `json:"write_bytes"`
	Zeroes      uint64       `json:"zeroes"` // zeroes and trims
	ZeroBytes   uint64       `json:"zero_bytes"`
	Blocks      int64        `json:"touched_bytes"` // of the device, in blocks of 4 KiB, each once
	First       time.Time    `json:"first,omitzero"`
	Last        time.Time    `json:"last,omitzero"`
	Checkpoints []Checkpoint `json:"checkpoints"`
	Damage      string       `json:"damage,omitempty"` // where it stops to be readable, and why
}

// LogRecord is one record as InspectLog shows it.
type LogRecord struct {
	LSN    uint64    `json:"lsn"`
	Time   time.Time `json:"time"`
	Op     string    `json:"op"`
	Offset uint64    `json:"offset"`
	Length uint32    `json:"length"`
	Text   string    `json:"text,omitempty"` // of a checkpoint: its name
}

// InspectLog reads the log at path and changes nothing. Every record is verified; each, which may be nil, gets them in order. A
// damaged log is no error but told in the report. A journal that an agent uses is refused.
func InspectLog(path string, each func(LogRecord) error) (LogReport, error) {
	f, err := os.Open(path)
	if err != nil {
		return LogReport{}, err
	}
	defer func() { _ = f.Close() }()
	x, err := journal.ReadExcerpt(f)
	if errors.Is(err, journal.ErrNotExcerpt) {
		return inspectJournal(path, each)
	}
	r := LogReport{Path: path, Kind: "excerpt"}
	if err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	r.Mirror, r.Name, r.Node, r.DeviceSize, r.Created, r.Reason = x.Mirror, x.Name, x.Node, x.DeviceSize, x.Created, x.Reason
	r.From, r.Head = uint64(x.From), uint64(x.To)
	r.generations(x.Generations)
	c := collector{r: &r, each: each}
	for {
		rec, payload, err := x.Next()
		if err == nil {
			err = c.take(rec, payload)
		}
		switch {
		case errors.Is(err, io.EOF):
			c.done()
			return r, nil
		case errors.Is(err, journal.ErrTruncated), errors.Is(err, journal.ErrCorrupt):
			r.Damage = err.Error()
			c.done()
			return r, nil
		case err != nil:
			return r, err
		}
	}
}

func (r *LogReport) generations(gs []journal.Generation) {
	r.Generations = []string{}
	for _, g := range gs {
		r.Generations = append(r.Generations, fmt.Sprintf("%s from LSN %d", rankString(g), g.First))
	}
}

func inspectJournal(path string, each func(LogRecord) error) (LogReport, error) {
	r := LogReport{Path: path, Kind: "journal"}
	file, err := blockdev.OpenFile(path, blockdev.FileOptions{ReadOnly: true})
	if errors.Is(err, blockdev.ErrInUse) {
		return r, fmt.Errorf("%w: mirror-agent status and checkpoint list say what an agent's log holds", err)
	}
	if err != nil {
		return r, err
	}
	defer func() { _ = file.Close() }()
	shadow := &shadowFile{File: file, blocks: map[int64][]byte{}}
	a, err := readAnchor(file)
	if err != nil {
		return r, fmt.Errorf("%s is neither a journal nor an excerpt of one: %w", path, err)
	}
	l, rec, err := journal.Open(shadow, journal.Options{Damaged: true})
	if err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	r.Mirror, r.Name, r.Role, r.DeviceSize, r.Clean = uuidString(a.Mirror), a.Name, RoleSecondary.String(), a.DeviceSize, a.Clean
	if a.Role == journal.RolePrimary {
		r.Role = RolePrimary.String()
	}
	r.From, r.Applied, r.Head = uint64(l.Tail()), uint64(l.Applied()), uint64(l.Head())
	r.generations(a.Generations)
	if rec.Rot != nil {
		r.Damage = rec.Rot.Error()
	}
	c := collector{r: &r, each: each}
	buf := make([]byte, batchBytes)
	for at := l.Tail(); at < l.Head(); {
		n, err := l.ReadRaw(at, buf)
		if short := (journal.ErrShortBuffer{}); errors.As(err, &short) {
			buf = make([]byte, short.Need)
			continue
		}
		if err == nil {
			err = l.Verify(at, at+journal.LSN(n))
		}
		if err != nil && errors.Is(err, journal.ErrCorrupt) {
			r.Damage = err.Error()
			break
		}
		if err == nil {
			err = journal.ParseRaw(buf[:n], c.take)
		}
		if err != nil {
			return r, errors.Join(err, l.Close())
		}
		at += journal.LSN(n)
	}
	c.done()
	return r, l.Close()
}

// collector fills a report from records.
type collector struct {
	r      *LogReport
	each   func(LogRecord) error
	blocks *dirtySet
}

func (c *collector) take(rec journal.Record, payload []byte) error {
	r := c.r
	if r.Records == 0 {
		r.First = time.Unix(0, rec.Time)
	}
	r.Records++
	r.Last = time.Unix(0, rec.Time)
	out := LogRecord{LSN: uint64(rec.LSN), Time: r.Last, Op: rec.Op.String(), Offset: rec.Offset, Length: rec.Length}
	switch rec.Op {
	case journal.OpWrite:
		r.Writes++
		r.WriteBytes += uint64(rec.Length)
	case journal.OpZero, journal.OpTrim:
		r.Zeroes++
		r.ZeroBytes += uint64(rec.Length)
	case journal.OpCheckpoint:
		out.Text = string(payload)
		r.Checkpoints = append(r.Checkpoints, Checkpoint{Name: out.Text, LSN: out.LSN, Time: out.Time})
	}
	if c.blocks == nil {
		c.blocks = newDirtySet(r.DeviceSize)
	}
	c.blocks = c.blocks.after(rec)
	if c.each == nil {
		return nil
	}
	return c.each(out)
}

func (c *collector) done() {
	if c.blocks != nil {
		c.r.Blocks = c.blocks.bytes()
	}
	if c.r.Checkpoints == nil {
		c.r.Checkpoints = []Checkpoint{}
	}
}

// ApplyReport says what ApplyExcerpt did, or would do.
type ApplyReport struct {
	LogReport
	Device  string `json:"device"`
	Applied bool   `json:"done"`
}

// ApplyExcerpt replays an excerpt onto the device at path, which no agent may use and no mirror own: on a copy of a device as it
// was at the excerpt's beginning this gives what the other side had at its end. Everything is verified before anything is
// written; it is durable when this returns. With dry it only says what it would do.
func ApplyExcerpt(ctx context.Context, excerpt, path string, dry bool) (ApplyReport, error) {
	seen, err := InspectLog(excerpt, nil)
	r := ApplyReport{LogReport: seen, Device: path}
	switch {
	case err != nil:
		return r, err
	case seen.Kind != "excerpt":
		return r, fmt.Errorf("%s is a whole journal: its own device has, or gets from its agent, what is in it; only excerpts (divergence-….log) are replayed", excerpt)
	case seen.Damage != "":
		return r, fmt.Errorf("%s is damaged, nothing was changed: %s", excerpt, seen.Damage)
	}
	if m, _ := readMark(path); m.name != "" {
		return r, fmt.Errorf("%s belongs to mirror %q, whose journal would not know of the changes; nothing was changed: replay onto a copy (cp --sparse=always %[1]s COPY)", path, m.name)
	}
	dev, err := blockdev.OpenFile(path, blockdev.FileOptions{ReadOnly: dry})
	if err != nil {
		return r, err
	}
	defer func() { _ = dev.Close() }()
	if size, err := dev.Size(); err != nil || size < seen.DeviceSize {
		return r, errors.Join(err, fmt.Errorf("%s has %d bytes, the mirror's device had %d; nothing was changed", path, size, seen.DeviceSize))
	}
	if dry {
		return r, nil
	}
	f, err := os.Open(excerpt)
	if err != nil {
		return r, err
	}
	defer func() { _ = f.Close() }()
	x, err := journal.ReadExcerpt(f)
	if err != nil {
		return r, err
	}
	for {
		rec, payload, err := x.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = errors.Join(ctx.Err(), replay(dev, rec, payload))
		}
		if err != nil {
			return r, fmt.Errorf("%s at LSN %d: %w; the device has everything before that, and may be replayed onto again from the beginning", path, rec.LSN, err)
		}
	}
	if err := dev.Sync(); err != nil {
		return r, err
	}
	r.Applied = true
	return r, nil
}

func replay(dev blockdev.Device, rec journal.Record, payload []byte) (err error) {
	switch rec.Op {
	case journal.OpWrite:
		_, err = dev.WriteAt(payload, int64(rec.Offset))
	case journal.OpZero:
		err = dev.Zero(int64(rec.Offset), int64(rec.Length))
	case journal.OpTrim:
		err = dev.Trim(int64(rec.Offset), int64(rec.Length))
	}
	return err
}
