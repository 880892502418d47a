package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// junked gives both hosts devices that are larger than the mirror, with other junk behind its end on each.
func junked(t *testing.T) *duo {
	t.Helper()
	d := &duo{hosts: [2]*host{newHost(t, RolePrimary), newHost(t, RoleSecondary)}, model: make([]byte, testDevice)}
	for i, h := range d.hosts {
		h.device.Grow(2 * testDevice)
		if _, err := h.device.WriteAt(bytes.Repeat([]byte{byte(0xa0 + i)}, testDevice), testDevice); err != nil {
			t.Fatal(err)
		}
		if err := h.device.Sync(); err != nil {
			t.Fatal(err)
		}
		d.v[i] = h.mustOpen(t)
	}
	d.states = [][]byte{bytes.Clone(d.model)}
	d.lead()
	d.session = connect(d.v[srcHost], d.v[dstHost], d.promise, inPlace(d.v[dstHost]))
	if err := d.session.awaitSync(); err != nil {
		t.Fatal(err)
	}
	return d
}

// grow makes the source's device twice as large and writes across the old end.
func (d *duo) grow() error {
	d.model = append(d.model, make([]byte, testDevice)...)
	d.states = append(d.states, bytes.Clone(d.model))
	if _, err := d.v[srcHost].Grow(context.Background(), 2*testDevice); err != nil {
		return err
	}
	d.answered = len(d.states) - 1
	p := bytes.Repeat([]byte{0x77}, 8<<10)
	copy(d.model[testDevice-4<<10:], p)
	d.states = append(d.states, bytes.Clone(d.model))
	_, err := d.v[srcHost].WriteAt(p, testDevice-4<<10)
	return err
}

// TestGrowPowerLoss cuts the power of each side at every disk operation while the device grows: the size is the old or the
// new one, the new one once that was answered, and what is new reads as zeroes on both sides, whatever lay there.
func TestGrowPowerLoss(t *testing.T) {
	for side, name := range []string{"source", "follower"} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(11, uint64(side)))
			cuts := 0
			for n := 1; ; n++ {
				cut, err := growCrash(t, side, n, rng)
				if err != nil {
					t.Fatalf("cut at operation %d: %v", n, err)
				}
				if !cut {
					break
				}
				cuts++
			}
			if cuts < 8 {
				t.Fatalf("only %d cuts", cuts)
			}
			t.Logf("%d cuts", cuts)
		})
	}
}

func growCrash(t *testing.T, side, n int, rng *rand.Rand) (bool, error) {
	d := junked(t)
	defer d.close()
	power := d.hosts[side].power
	power.CutAfter(n)
	err := d.scenario(10, never)
	if err == nil {
		err = d.grow()
	}
	if err == nil {
		err = d.scenario(10, never)
	}
	power.CutAfter(1 << 30) // whatever goes on behind the scenes is not cut any more
	if !power.Lost() {
		if err != nil {
			return false, err
		}
		return false, d.finish()
	}
	if side == dstHost && err != nil {
		return true, fmt.Errorf("the source failed for the follower's power: %w", err)
	}
	d.session.close()
	_ = d.v[side].Abort()
	power.Restore(rng)
	v, err := d.hosts[side].open()
	if err != nil {
		return true, fmt.Errorf("open after power loss: %w", err)
	}
	d.v[side] = v
	least := d.flushed
	if side == srcHost {
		least = d.answered
	}
	at, err := d.stateOf(v, least)
	if err != nil {
		return true, fmt.Errorf("after power loss: %w", err)
	}
	if side == srcHost {
		d.model = bytes.Clone(d.states[at])
		d.lead()
	}
	d.session = connect(d.v[srcHost], d.v[dstHost], d.promise, nil)
	if err := d.session.awaitSync(); err != nil {
		return true, fmt.Errorf("after power loss: %w", err)
	}
	if err := d.finish(); err != nil {
		return true, err
	}
	return true, sameSize(d)
}

func sameSize(d *duo) error {
	if a, b := d.v[srcHost].size.Load(), d.v[dstHost].size.Load(); a != b {
		return fmt.Errorf("sizes %d and %d", a, b)
	}
	return nil
}

// plain is a device that cannot grow.
type plain struct{ blockdev.Device }

// TestFollowerTooSmall: a target that cannot have a device so large refuses the resize record with its reason, keeps what it
// has, and goes on once its device was enlarged.
func TestFollowerTooSmall(t *testing.T) {
	d := disconnected(t)
	defer d.close()
	src, dst := d.v[srcHost], d.v[dstHost]
	dst.stop() // whoever applies looks at the device, too
	<-dst.stopped
	dst.dev = plain{dst.dev}
	before, err := content(dst)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.grow(); err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, 64<<10)
	head := dst.log.Head()
	n, err := src.log.ReadRaw(head, raw)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dst.appendRaw(t.Context(), head, raw[:n]); !errors.Is(err, ErrTooSmall) || !strings.Contains(err.Error(), "needed") {
		t.Fatalf("a record that makes the device larger than it can be: %v", err)
	}
	after, err := content(dst)
	if err != nil || !bytes.Equal(before, after) {
		t.Fatalf("the refused record changed something (%v)", err)
	}
	dst.dev = dst.dev.(plain).Device
	if _, err := dst.appendRaw(t.Context(), head, raw[:n]); err != nil {
		t.Fatal(err)
	}
	if err := sameSize(d); err != nil {
		t.Fatal(err)
	}
}

// TestResizeRecordIsChecked: a size that is no multiple of a sector, smaller than before or out of this world is refused.
func TestResizeRecordIsChecked(t *testing.T) {
	for _, size := range []uint64{testDevice - 512, testDevice + 1, 1 << 61, 0} {
		if err := checkResize(journal.Record{Op: journal.OpResize, Offset: size}, testDevice); err == nil {
			t.Errorf("%d bytes: accepted", size)
		}
	}
}

// TestGrowRefuses: what cannot be is refused and changes nothing.
func TestGrowRefuses(t *testing.T) {
	d := disconnected(t)
	defer d.close()
	src, dst := d.v[srcHost], d.v[dstHost]
	if n, err := src.Grow(t.Context(), 0); err != nil || n != testDevice {
		t.Errorf("as large as the backing device, which did not grow: %d, %v", n, err)
	}
	src.stop() // whoever applies looks at the device, too
	<-src.stopped
	src.dev = plain{src.dev}
	head := src.log.Head()
	for _, c := range []struct {
		v    *Volume
		size int64
		want string
	}{
		{src, testDevice / 2, "smaller"},
		{src, testDevice + 100, "multiple of 512"},
		{src, 2 * testDevice, "needed"},
		{dst, 2 * testDevice, "secondary"},
	} {
		if n, err := c.v.Grow(t.Context(), c.size); err == nil || !strings.Contains(err.Error(), c.want) || n != testDevice {
			t.Errorf("%d bytes: %d, %v", c.size, n, err)
		}
	}
	if src.log.Head() != head {
		t.Error("a refused resize is in the log")
	}
}

// TestGrowAgents follows a mirror that grows while its target is there, away, and away for so long that it is resynced, to a
// restart with the old --size and to the target's promotion.
func TestGrowAgents(t *testing.T) {
	target := newAgentNode(t, RoleSecondary).start()
	source := newAgentNode(t, RolePrimary, target).start()
	source.awaitState("in sync")
	p := source.write(1)
	size := source.c.Size
	resize := func(n int64) {
		t.Helper()
		if got, err := source.a.Resize(t.Context(), n); err != nil || got != n {
			t.Fatalf("resize to %d: %d, %v", n, got, err)
		}
	}
	last := func() []byte { // written at the very end
		t.Helper()
		dev := source.awaitServing()
		n, err := dev.Size()
		if err != nil {
			t.Fatal(err)
		}
		b := bytes.Repeat([]byte{byte(n >> 20)}, 4096)
		if _, err := dev.WriteAt(b, n-4096); err != nil {
			t.Fatal(err)
		}
		if err := dev.Sync(); err != nil {
			t.Fatal(err)
		}
		return b
	}
	check := func(n *agentNode, want []byte) {
		t.Helper()
		source.awaitState("in sync")
		n.await("as large as the source", func(s Status) bool { return s.Device.SizeBytes == size })
		if info, err := os.Stat(n.c.Device); err != nil || info.Size() < size {
			t.Fatalf("the device file: %v %v", info, err)
		}
		got := make([]byte, 4096)
		if _, err := n.a.v.ReadAt(got, size-4096); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("the last block differs (%v)", err)
		}
		n.holds(p)
	}
	size = 2 << 20
	resize(size)
	check(target, last())

	target.kill()
	size = 3 << 20
	resize(size)
	want := last()
	target.start()
	check(target, want)

	target.kill()
	size = 4 << 20
	resize(size)
	want = last()
	dev := source.awaitServing()
	for range 3 * minJournalSize / (1 << 20) { // the log does not reach back any more
		if _, err := dev.WriteAt(bytes.Repeat([]byte{9}, 1<<20), 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	target.start()
	source.await("resynced", func(s Status) bool { return s.State == "in sync" })
	check(target, want)

	source.kill()
	source.start() // with the size that it was created with
	check(target, want)
	source.end()
	target.awaitState("waiting")
	if _, err := target.a.Promote(t.Context(), PromoteOptions{}); err != nil {
		t.Fatal(err)
	}
	if n, err := target.awaitServing().Size(); err != nil || n != size {
		t.Fatalf("promoted with %d bytes (%v)", n, err)
	}
}

// TestCheckpoints: a checkpoint lies at the same LSN on both sides and is listed while the log reaches back to it.
func TestCheckpoints(t *testing.T) {
	d := newDuo(t)
	defer d.close()
	src, dst := d.v[srcHost], d.v[dstHost]
	if err := d.scenario(10, never); err != nil {
		t.Fatal(err)
	}
	made := []Checkpoint{}
	for _, name := range []string{"first", "second", "first"} {
		c, err := src.Checkpoint(t.Context(), name)
		if err != nil || c.Name != name || c.Time.IsZero() {
			t.Fatalf("%+v: %v", c, err)
		}
		made = append(made, c)
	}
	for _, v := range d.v {
		got, err := v.Checkpoints()
		if err != nil || fmt.Sprint(got) != fmt.Sprint(made) {
			t.Fatalf("%v listed, %v made (%v)", got, made, err)
		}
	}
	if _, err := dst.Checkpoint(t.Context(), "here"); err == nil || !strings.Contains(err.Error(), "on the source") {
		t.Errorf("made on a secondary: %v", err)
	}
	for _, name := range []string{"", "a b", strings.Repeat("x", 65), "a/b"} {
		if _, err := src.Checkpoint(t.Context(), name); err == nil || !strings.Contains(err.Error(), "checkpoint") {
			t.Errorf("name %q: %v", name, err)
		}
	}
	for range 2 * testJournal / (16 << 10) { // around the ring
		if _, err := src.WriteAt(make([]byte, 16<<10), 0); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := src.Checkpoints(); err != nil || len(got) != 0 {
		t.Fatalf("%v is listed, and the log has gone on (%v)", got, err)
	}
}
