package integration

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// overwriteVar makes the test's binary, in a guest, write the blocks of this device over and over until /tmp/stop is there.
	overwriteVar = "MIRROR_AGENT_TEST_OVERWRITE"

	overwriteBlocks = 16

	// A write that took overwritePause was held up by a server that stood still. Some more follow at once, and then nothing for
	// overwriteQuiet: a late copy of the one that was held up would be there now.
	overwritePause = time.Second
	overwriteQuiet = 2 * time.Second
	overwriteMore  = 3
)

// overwriteMain counts up in each block, past the cache, one write at a time. Each block always holds what was answered last.
func overwriteMain(device string) int {
	f, err := os.OpenFile(device, os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		fmt.Println("overwrite:", err)
		return 1
	}
	defer f.Close()
	var all sync.WaitGroup
	last, problems := make([]uint64, overwriteBlocks), make([]error, overwriteBlocks)
	for b := range overwriteBlocks {
		all.Go(func() { last[b], problems[b] = overwriteBlock(f, int64(b)*ledgerBlock) })
	}
	all.Wait()
	status := 0
	for b, err := range problems {
		fmt.Printf("block %d: %d was answered last\n", b, last[b])
		if err != nil {
			fmt.Printf("block %d: %v\n", b, err)
			status = 1
		}
	}
	return status
}

func overwriteBlock(f *os.File, off int64) (n uint64, err error) {
	p, err := unix.Mmap(-1, 0, ledgerBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned, as O_DIRECT wants it
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(p)
	more := 0 // writes until it is quiet
	for {
		for i := 0; i < len(p); i += 8 {
			binary.LittleEndian.PutUint64(p[i:], n+1)
		}
		began := time.Now()
		if _, err := f.WriteAt(p, off); err != nil {
			return n, err
		}
		n++
		if time.Since(began) > overwritePause {
			more = overwriteMore + 1
		}
		if more > 0 {
			if more--; more > 0 {
				continue
			}
			time.Sleep(overwriteQuiet)
		}
		if _, err := f.ReadAt(p, off); err != nil {
			return n, err
		}
		if got, whole := overwritten(p); got != n || !whole {
			return n, fmt.Errorf("it holds %d (whole: %v) after %d was answered", got, whole, n)
		}
		if _, err := os.Stat("/tmp/stop"); err == nil {
			return n, nil
		}
	}
}

// overwritten is the number in a block, and whether all of it is of one write.
func overwritten(p []byte) (n uint64, whole bool) {
	n = binary.LittleEndian.Uint64(p)
	for i := 8; i < len(p); i += 8 {
		if binary.LittleEndian.Uint64(p[i:]) != n {
			return n, false
		}
	}
	return n, true
}
