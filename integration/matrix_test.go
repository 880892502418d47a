package integration

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// matrixFault is a row of the matrix. What is played in a host's network has play, of one cell; what needs a virtual machine has
// power, of all four modes at once.
type matrixFault struct {
	name, played, told string
	lay                netLayout
	play               func(c *cell)
	power              func(t *testing.T) []*cell
	least              func(mode string) due // of the follower alone; default promised
}

var matrix = []matrixFault{
	{name: "source power loss", played: "the source is in a virtual machine, whose QEMU is killed; what it had not flushed is lost; it boots again", told: "target: waiting, promote", power: powerSource},
	{name: "target power loss", played: "the target is in a virtual machine, whose QEMU is killed; what it had not flushed is lost; it boots again", told: "source: degraded, alarm", power: powerTarget, least: leastOfDisk},
	{name: "backup killed in resync", played: "a cold backup that was in sync once gets the flow again and is killed while the difference is copied", told: "source: resync, then degraded, alarm", lay: netLayout{toBackup: 2}, play: faultBackupKilled},
	{name: "double promote", played: "the source is lost, target and hot backup are both promoted by force, each by two orders at once, written to, and meet; one is demoted", told: "target: degraded, two primaries", lay: netLayout{toBackup: 2, sourceArgs: []string{"--backups", "hot"}}, play: faultDoublePromote},
	{name: "old source returns", played: "cut off, it goes on alone and dies; the target is promoted and written to; it comes back, is demoted and resynced", told: "old source: fenced", play: faultOldSource},
	{name: "one-way partition", played: "what the source says is lost for a while, then what the target says", told: "source: degraded, alarm; target: waiting, promote", play: faultOneWay},
	{name: "partition", played: "all paths are silent for a while", told: "source: degraded, alarm; target: waiting, promote", play: faultPartition},
	{name: "target's disk fails", played: "every write to its device is EIO; then the disk is good again and it is restarted", told: "target: failed; source: degraded, alarm", play: faultDiskError},
	{name: "target's disk full", played: "the filesystem of its device is full for a while", told: "target: device full; source: in sync, alarm", play: faultDiskFull},
	{name: "target killed", played: "SIGKILL; started again", told: "source: degraded, alarm", play: faultTargetKilled},
	{name: "source killed", played: "SIGKILL and all paths cut; started again", told: "in sync again without a resync", play: faultSourceKilled},
	{name: "both killed", played: "SIGKILL of both; started again", told: "in sync again without a resync", play: faultBothKilled},
	{name: "one path cut", played: "one of two paths is silent for a while", told: "source: in sync, one path down", play: faultPath},
}

// leastOfDisk is what the disks of a target that lost its power have: in receive nobody waits for them.
func leastOfDisk(mode string) due {
	if mode == "receive" {
		return dueFlushed
	}
	return promised(mode)
}

// matrixWorkers is how many cells are played at once; most of the time a cell waits for a silence to be long enough.
const matrixWorkers = 3

// outcome is what a cell has shown.
type outcome struct {
	held     string
	measured string
}

// TestMatrix plays each fault in each mode, and compares what held with the table in README.md.
func TestMatrix(t *testing.T) {
	needRoot(t, "network namespaces")
	results := make([][4]outcome, len(matrix))
	var mu sync.Mutex // guards results
	type job struct{ row, mode int }
	jobs := make(chan job)
	var wg sync.WaitGroup
	for range matrixWorkers {
		wg.Go(func() {
			for j := range jobs {
				f := &matrix[j.row]
				began := time.Now()
				var cells []*cell
				var held bool
				name := f.name
				if f.play != nil {
					name += "/" + matrixModes[j.mode]
				}
				t.Run(name, func(t *testing.T) {
					if f.power != nil {
						cells = f.power(t)
					} else {
						c := newCell(t, matrixModes[j.mode], f.lay)
						f.play(c)
						cells = []*cell{c}
					}
					held = !t.Failed()
				})
				mu.Lock()
				for i, c := range cells {
					if held {
						results[j.row][j.mode+i] = c.outcome(f, time.Since(began))
					}
				}
				mu.Unlock()
			}
		})
	}
	for row, f := range matrix {
		for mode := range matrixModes {
			if f.power == nil || mode == 0 {
				jobs <- job{row, mode}
			}
		}
	}
	close(jobs)
	wg.Wait()
	checkMatrixTable(t, results)
}

func (c *cell) outcome(f *matrixFault, took time.Duration) outcome {
	least := promised
	if f.least != nil {
		least = f.least
	}
	return outcome{string(least(c.mode)), fmt.Sprintf("%d of %d, %.0f s", c.lost.acked, c.total, took.Seconds())}
}

const (
	matrixBegin    = "<!-- TestMatrix writes this: MIRROR_AGENT_UPDATE=1 -->\n"
	matrixMeasured = "<!-- measured, not compared -->\n"
	matrixEnd      = "<!-- end of the matrix -->\n"
)

// checkMatrixTable compares the table with what was seen; with MIRROR_AGENT_UPDATE=1 it writes it, and what was measured below it. A
// cell that was not played (-run) is taken for what it should be.
func checkMatrixTable(t *testing.T, results [][4]outcome) {
	t.Helper()
	var b, m strings.Builder
	b.WriteString("| fault | what is played | what is told | async | flush | receive | durable |\n|---|---|---|---|---|---|---|\n")
	m.WriteString("| fault | async | flush | receive | durable |\n|---|---|---|---|---|\n")
	whole := true
	for row, f := range matrix {
		fmt.Fprintf(&b, "| %s | %s | %s |", f.name, f.played, f.told)
		fmt.Fprintf(&m, "| %s |", f.name)
		for mode := range matrixModes {
			r := results[row][mode]
			if r.held == "" {
				r.held, whole = string((&cell{mode: matrixModes[mode]}).outcome(&f, 0).held), false
			}
			fmt.Fprintf(&b, " %s |", r.held)
			fmt.Fprintf(&m, " %s |", r.measured)
		}
		b.WriteString("\n")
		m.WriteString("\n")
	}
	t.Logf("answered writes that a follower alone does not have, and time:\n%s", m.String())
	text, err := os.ReadFile(claimsTable)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), matrixBegin)
	old, rest, ok2 := strings.Cut(rest, matrixMeasured)
	oldMeasured, after, ok3 := strings.Cut(rest, matrixEnd)
	if !ok || !ok2 || !ok3 {
		t.Fatalf("%s has no place for the matrix: %q … %q … %q", claimsTable, matrixBegin, matrixMeasured, matrixEnd)
	}
	if os.Getenv("MIRROR_AGENT_UPDATE") == "1" && !t.Failed() {
		if !whole {
			m.Reset()
			m.WriteString(oldMeasured)
		}
		if err := os.WriteFile(claimsTable, []byte(before+matrixBegin+b.String()+matrixMeasured+m.String()+matrixEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if b.String() != old {
		t.Errorf("the matrix in %s is not what this run shows; MIRROR_AGENT_UPDATE=1 writes it:\n%s", claimsTable, b.String())
	}
}
