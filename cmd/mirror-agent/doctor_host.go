package main

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mirror-agent/dataport"
	"mirror-agent/mirror"
)

// examineKeys looks at this host's key file and at those of the others, as far as they are known.
func (a *app) examineKeys(s *settings, given bool, r *diagnosis) {
	path := s.keyFile
	if path == "" {
		path = a.defaultKeyFile()
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && s.config.Insecure:
		r.add(finding{"keys", "", levelWarn, "insecure: nobody proves who he is, and all goes in the clear", "mirror-agent keygen on every host, --peer-key for each other, and no --insecure, outside of a laboratory"})
		return
	case errors.Is(err, fs.ErrNotExist):
		l := levelWarn // it may be that none is needed
		if given && (len(s.config.Target) > 0 || len(s.config.Listen) > 0) {
			l = levelFail
		}
		r.add(finding{"keys", path, l, "no such file: this host has no key", "mirror-agent keygen" + keyFlag(s.keyFile)})
		return
	case err != nil:
		r.add(finding{"keys", path, levelFail, err.Error(), "make it readable for the agent's user, and for nobody else"})
		return
	}
	if mode := st.Mode().Perm(); mode&0o077 != 0 {
		r.add(finding{"keys", path, levelFail, fmt.Sprintf("mode %04o: others may read it", mode), "chmod 600 " + path + "; if others may have read it, mirror-agent keygen --force makes a new one"})
		return
	}
	key, err := dataport.LoadKey(path)
	if err != nil {
		r.add(finding{"keys", path, levelFail, err.Error(), "mirror-agent keygen makes a new one; give its public key to the other hosts"})
		return
	}
	own := dataport.FormatPublicKey(key.Public().(ed25519.PublicKey))
	r.add(finding{"keys", path, levelOK, own, ""})
	s.config.Key = key
	if !given {
		return
	}
	seen := map[string]bool{}
	for _, word := range s.peerKeys {
		k, err := dataport.ParsePublicKey(word)
		switch {
		case err != nil:
			r.add(finding{"keys", "peer-key", levelFail, err.Error(), "copy it from mirror-agent keygen --show on that host"})
			continue
		case word == own:
			r.add(finding{"keys", "peer-key", levelFail, word + " is this host's own key", "give the other host's: mirror-agent keygen --show there"})
			continue
		case seen[word]:
			r.add(finding{"keys", "peer-key", levelWarn, word + " is there twice", "does another host lack its own?"})
			continue
		}
		seen[word] = true
		s.config.Peers = append(s.config.Peers, k)
	}
	switch need := 1 + len(s.config.Backups); {
	case s.config.Insecure:
	case len(seen) == 0 && (len(s.config.Target) > 0 || len(s.config.Listen) > 0):
		r.add(finding{"keys", "peer-key", levelFail, "no other host's key is given, so none could connect", "--peer-key for each; mirror-agent keygen --show there prints it"})
	case len(s.config.Target) > 0 && len(seen) < need:
		r.add(finding{"keys", "peer-key", levelWarn, fmt.Sprintf("%d keys for %d other hosts", len(seen), need), "one --peer-key for each host, unless two share a key, which they should not"})
	case len(seen) > 0:
		r.add(finding{"keys", "peer-key", levelOK, fmt.Sprintf("%d other hosts' keys are pinned", len(seen)), ""})
	}
}

// examineKernel looks for the NBD module, which attach needs, under root ("/").
func examineKernel(root string) []finding {
	f := finding{Area: "kernel", About: "nbd", Level: levelOK}
	if _, err := os.Stat(filepath.Join(root, "sys/module/nbd")); err == nil {
		f.Says = "the module is there: mirror-agent attach works"
		return []finding{f}
	}
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	release := unix.ByteSliceToString(uts.Release[:])
	f.Level = levelWarn
	for _, list := range []string{"modules.builtin", "modules.dep"} {
		b, err := os.ReadFile(filepath.Join(root, "lib/modules", release, list))
		if err == nil && strings.Contains(string(b), "/nbd.ko") {
			f.Says, f.Do = "the module is not loaded; only mirror-agent attach needs it", "modprobe nbd, and nbd in /etc/modules-load.d/ for after a restart"
			return []finding{f}
		}
	}
	f.Says, f.Do = "kernel "+release+" has no module nbd; only mirror-agent attach needs it", "a kernel that has it, or nbdfuse and a loop device (README)"
	return []finding{f}
}

// leastFiles is what an agent may need: 128 clients, paths of all sessions, and its own.
const leastFiles = 1024

func examineLimits() []finding {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return []finding{{"limits", "nofile", levelWarn, err.Error(), ""}}
	}
	return []finding{fileLimit(l.Cur, l.Max)}
}

func fileLimit(soft, hard uint64) finding {
	f := finding{"limits", "nofile", levelOK, fmt.Sprintf("%d files at once", soft), ""}
	if soft == math.MaxUint64 {
		f.Says = "as many files at once as are wanted"
	}
	if hard < leastFiles { // Go raises the soft limit to the hard one by itself
		f.Level, f.Do = levelWarn, fmt.Sprintf("ulimit -n %d, or LimitNOFILE= in the unit: each client and each path is one", leastFiles)
		f.Says = fmt.Sprintf("%d files at once are few", hard)
	}
	return f
}

const (
	muchDrift = time.Second
	// Anything more makes RPO and checkpoints by time useless.
	tooMuchDrift = time.Minute
)

// examineClock asks the kernel whether its clock is kept, and compares it with the other hosts' as the agent found them.
func examineClock(st *mirror.Status) []finding {
	list := []finding{kernelClock()}
	if st == nil {
		return list
	}
	compare := func(h *mirror.HostStatus) {
		if h == nil || h.Version == "" {
			return
		}
		list = append(list, clockDrift(h))
	}
	for i := range st.Followers {
		compare(st.Followers[i].Host)
	}
	if st.Source != nil {
		compare(st.Source.Host)
	}
	return list
}

func kernelClock() finding {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	f := finding{"clock", "", levelOK, "the kernel's clock is kept by a time service", ""}
	switch {
	case err != nil:
		f.Level, f.Says, f.Do = levelWarn, "the kernel does not say whether its clock is kept: "+err.Error(), "see timedatectl"
	case state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0:
		f.Level, f.Says = levelWarn, "no time service keeps this host's clock"
		f.Do = "apt install chrony (or timedatectl set-ntp true): RPO, history and logs of several hosts go by the clock"
	}
	return f
}

func clockDrift(h *mirror.HostStatus) finding {
	ahead := time.Duration(h.ClockAhead * float64(time.Second))
	f := finding{"clock", h.Name, levelOK, fmt.Sprintf("%s, give or take %s", aheadWords(ahead), formatSeconds(h.ClockUnsure)), ""}
	off := ahead.Abs() - time.Duration(h.ClockUnsure*float64(time.Second))
	switch {
	case off > tooMuchDrift:
		f.Level = levelFail
	case off > muchDrift:
		f.Level = levelWarn
	default:
		return f
	}
	f.Do = "a time service on both hosts (chrony): RPO and points in time are wrong by as much"
	return f
}

func aheadWords(ahead time.Duration) string {
	if ahead < 0 {
		return formatSeconds(-ahead.Seconds()) + " behind this host's"
	}
	return formatSeconds(ahead.Seconds()) + " ahead of this host's"
}

// diskPlace is a file of the mirror whose disk is looked at.
type diskPlace struct {
	what string // device, log
	path string
	size int64 // that it is to have, 0: unknown
}

// diskPlaces are the device and the log, by the settings or else by what the agent says.
func diskPlaces(s *settings, st *mirror.Status) []diskPlace {
	device := diskPlace{"device", s.config.Device, s.config.Size}
	journal := diskPlace{"log", s.config.Journal, s.config.JournalSize}
	if st != nil {
		device = diskPlace{"device", st.Device.Path, st.Device.SizeBytes}
		journal = diskPlace{"log", st.Log.Path, st.Log.SizeBytes}
	}
	if device.path != "" && journal.path == "" {
		journal.path = device.path + ".journal"
	}
	return slices.DeleteFunc([]diskPlace{device, journal}, func(d diskPlace) bool { return d.path == "" })
}
