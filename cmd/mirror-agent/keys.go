package main

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/pflag"

	"mirror-agent/dataport"
	"mirror-agent/mirror"
	"mirror-agent/mirror/hook"
)

// settings is what a daemon starts with.
type settings struct {
	config    mirror.Config // without Key, Peers and Log
	control   string
	keyFile   string
	peerKeys  []string
	backups   backupKind   // of the backups that do not say
	kinds     []backupKind // of each backup, "" where it does not say
	metrics   string       // HOST:PORT, "" for none
	hooks     []hook.Hook
	nbdTLS    nbdTLSFiles
	page      pageSettings
	front     frontSecurity // from nbdTLS and --insecure, see secureFront
	logLevel  zerolog.Level
	logFormat string
}

func defaultSettings() settings {
	return settings{config: mirror.DefaultConfig(), backups: coldBackup, logLevel: zerolog.InfoLevel, logFormat: logConsole}
}

// key is one setting: a flag, an environment variable, a key in the file.
type key struct {
	name  string
	usage string // with the value's `NAME` in backquotes
	flag  func(fs *pflag.FlagSet, k key)
	// set parses the words that were given, at least one.
	set func(s *settings, words []string) error
}

// keys are all settings of a daemon; role exists in the file only, because on
// the command line the command says it.
var keys = []key{
	text("name", "`NAME` of the mirror, the same on all its hosts", func(s *settings) *string { return &s.config.Name }),
	text("device", "backing `FILE` or block device; a missing file is created with --size", func(s *settings) *string { return &s.config.Device }),
	text("node", "this host's `NAME` as the other hosts show it (default the host's name)", func(s *settings) *string { return &s.config.NodeName }),
	size("size", "`SIZE` of the device, like 64GiB (default what the device has)", func(s *settings) *int64 { return &s.config.Size }),
	{"adopt", "a target takes a device that holds data and overwrites it where it differs", boolFlag, parsed(parseBool, func(s *settings) *bool { return &s.config.Adopt })},
	{"nbd", "`ADDR` to serve at, unix:PATH or HOST:PORT, off loopback with TLS, or systemd:NAME, a socket of a .socket unit; on a target used once it is promoted", stringFlag, parsed(parseNBD, func(s *settings) *string { return &s.config.NBD })},
	text(certSetting, "PEM `FILE` of the NBD server's certificate and chain: TCP clients must use TLS, at a unix socket they may; read again when it changes", func(s *settings) *string { return &s.nbdTLS.cert }),
	text(keySetting, "PEM `FILE` of that certificate's private key", func(s *settings) *string { return &s.nbdTLS.key }),
	text(caSetting, "PEM `FILE` of the authority of the NBD clients' certificates; without it TLS lets every client in", func(s *settings) *string { return &s.nbdTLS.ca }),
	list("listen", "`HOST:PORT[,...]` to be reached at by the other hosts, one for each path; 0.0.0.0 or [::] is every address of this host, as they come and go", hostPort, func(s *settings) *[]string { return &s.config.Listen }),
	list("target", "`HOST:PORT[,...]` of the target, several addresses of this one host are its paths", hostPort, func(s *settings) *[]string { return &s.config.Target }),
	{"announced", "one address of a target is enough: it says its others, and there is a path to each; false: only those given here", trueFlag, parsed(parseBool, func(s *settings) *bool { return &s.config.Announced })},
	{"backup", "`[hot:|cold:]HOST:PORT[,...]` of a backup target, see --backups; give it again for the next backup", stringArray, setBackups},
	choice("backups", "hot (fed all the time like the target: a switch-over copies nothing) or cold (no connection before a switch-over)", parseBackupKind, func(s *settings) *backupKind { return &s.backups }),
	list("local", "local `IP[,...]` to connect from: for each path the one in the other end's subnet (default the kernel's choice)", ipAddress, func(s *settings) *[]string { return &s.config.Local }),
	checked("compress", "how what this host sends is packed: none, s2, zstd or auto (by what the link carries and packing costs)", func(w string) error { _, err := dataport.ParseCompression(w); return err }, func(s *settings) *string { return &s.config.Compress }),
	checked("bandwidth", "`LIMIT` of what a source sends to each target over all its paths, like 50MB/s or 'Mon-Fri 08:00-18:00=20MB/s,*=100MB/s' (default none)", func(w string) error { _, err := dataport.ParseBandwidth(w); return err }, func(s *settings) *string { return &s.config.Bandwidth }),
	size("resync-rate", "`SIZE` that a resync copies or compares per second at most, for each target; it yields to the applications anyway (default no limit)", func(s *settings) *int64 { return &s.config.ResyncBytes }),
	choice("mode", "what writes and FLUSH wait for: async (this host), flush (a FLUSH for the target's disk too), receive (and a write until the target has it) or durable (a write for both disks)", mirror.ParseMode, func(s *settings) *mirror.Mode { return &s.config.Mode }),
	choice("switch", "who starts the switch-over to a backup: manual or auto", mirror.ParseSwitchMode, func(s *settings) *mirror.SwitchMode { return &s.config.Switch }),
	choice("on-loss", "without any target: continue (alarm, catch up later) or freeze (writes wait)", mirror.ParseOnLoss, func(s *settings) *mirror.OnLoss { return &s.config.OnLoss }),
	choice("on-full", "a log full of what a connected target has not got: track (writers are slowed for --push-back at most, then its blocks are resynced later) or wait (as long as it takes)", mirror.ParseOnFull, func(s *settings) *mirror.OnFull { return &s.config.OnFull }),
	duration("push-back", "`TIME` that a connected target may slow writers with --on-full track", func(s *settings) *time.Duration { return &s.config.PushBack }),
	{"auto-promote", "a target that was in sync promotes itself when its source is lost: with the word of the other members (three or more), or of the arbiter", boolFlag, parsed(parseBool, func(s *settings) *bool { return &s.config.AutoPromote })},
	text("arbiter", "who decides which host is primary: operator (default), or etcd://HOST:PORT[,HOST:PORT...]/PREFIX (etcds:// by TLS), which leases that; the same on all hosts", func(s *settings) *string { return &s.config.Arbiter }),
	duration("arbiter-ttl", "`TIME` of the arbiter's lease, whole seconds: a source that cannot renew it stops answering before it is over", func(s *settings) *time.Duration { return &s.config.ArbiterTTL }),
	text("arbiter-tls-ca", "PEM `FILE` of the authority of the arbiter's certificate", func(s *settings) *string { return &s.config.ArbiterCA }),
	text("arbiter-tls-cert", "PEM `FILE` of this host's certificate for the arbiter", func(s *settings) *string { return &s.config.ArbiterCert }),
	text("arbiter-tls-key", "PEM `FILE` of that certificate's private key", func(s *settings) *string { return &s.config.ArbiterKey }),
	choice("alone", "a restarted source that reaches no other host: serve or refuse", mirror.ParseAlone, func(s *settings) *mirror.Alone { return &s.config.Alone }),
	duration("start-wait", "`TIME` that a restarted source asks the others for a newer generation", func(s *settings) *time.Duration { return &s.config.StartWait }),
	text("journal", "`FILE` of the log (default the device's name + .journal)", func(s *settings) *string { return &s.config.Journal }),
	size("journal-size", "`SIZE` of the log when it is created (default a tenth of the device, 64MiB to 4GiB)", func(s *settings) *int64 { return &s.config.JournalSize }),
	text("state-dir", "`DIR` for what lies beside the log, called after the mirror: bitmaps, members, the copy that a resync builds (default beside the journal or device; for raw partitions /var/lib/mirror-agent, if it is there)", func(s *settings) *string { return &s.config.StateDir }),
	duration("retain-time", "`TIME` for which the log is not applied yet, so that this host can go back to any point of it", func(s *settings) *time.Duration { return &s.config.RetainTime }),
	size("retain-size", "`SIZE` of the log that is retained so at most, up to half the log; alone: as much, however old", func(s *settings) *int64 { return &s.config.RetainBytes }),
	duration("checkpoint-every", "`TIME` after which a source names the present point (auto-TIME) if anything was written; 0 is never", func(s *settings) *time.Duration { return &s.config.CheckpointEvery }),
	duration("scrub-every", "`TIME` between two scrubs of the log, which look for rot; 0 is never", func(s *settings) *time.Duration { return &s.config.ScrubEvery }),
	duration("watchdog", "`TIME` for which a resync, a catch-up, the applier and the like may stand still before there is an alarm; 0: none", func(s *settings) *time.Duration { return &s.config.Watchdog }),
	text("control", "control socket's `PATH` (default NAME.sock in /run/mirror-agent or $XDG_RUNTIME_DIR/mirror-agent)", func(s *settings) *string { return &s.control }),
	{"http", "`HOST:PORT` to show the mirror's page at, for browsers; off loopback with TLS, and a token or clients' certificates", stringFlag, parsed(parseHTTP, func(s *settings) *string { return &s.page.address })},
	text("http-token", "`FILE` with the word that lets a browser in, 20 characters or more (openssl rand -hex 16), for nobody else to read", func(s *settings) *string { return &s.page.token }),
	text("http-tls-cert", "PEM `FILE` of the page's certificate and chain", func(s *settings) *string { return &s.page.tls.cert }),
	text("http-tls-key", "PEM `FILE` of that certificate's private key", func(s *settings) *string { return &s.page.tls.key }),
	text("http-tls-ca", "PEM `FILE` of the authority of the browsers' certificates; none comes in without one then", func(s *settings) *string { return &s.page.tls.ca }),
	{"http-control", "the page may also give orders: switch, promote, verify, suspend; needs --http-token or --http-tls-ca", boolFlag, parsed(parseBool, func(s *settings) *bool { return &s.page.control })},
	{"metrics", "`HOST:PORT` where Prometheus scrapes /metrics, without a host at loopback (default none)", stringFlag, parsed(parseMetrics, func(s *settings) *string { return &s.metrics })},
	{"hook", "`EVENT[,EVENT]=COMMAND` to run by the shell on these events (README: hooks); give it again for the next", stringArray, setHooks},
	text("key", "this host's private key `FILE` (default where keygen puts it)", func(s *settings) *string { return &s.keyFile }),
	{"peer-key", "public `KEY` of another host of the mirror; give it again for each", stringArray, setPeerKeys},
	{"insecure", "plain TCP without keys, NBD off loopback without TLS, in a laboratory only", boolFlag, parsed(parseBool, func(s *settings) *bool { return &s.config.Insecure })},
	duration("sync-interval", "`TIME` after which the log is made durable without any FLUSH", func(s *settings) *time.Duration { return &s.config.SyncInterval }),
	duration("unreachable-after", "`TIME` of silence on all paths that makes a target unreachable", func(s *settings) *time.Duration { return &s.config.UnreachableAfter }),
	duration("path-down-after", "`TIME` of silence that takes one path down", func(s *settings) *time.Duration { return &s.config.PathDownAfter }),
	{"active-paths", "`NUMBER` of paths to a target that carry data at once, the others stand by and take over (0: all)", valueFlag("number", "0", func(w string) error { _, err := parseCount(w); return err }), parsed(parseCount, func(s *settings) *int { return &s.config.ActivePaths })},
	choice("log-level", "least important messages to log: debug, info, warn, error", parseLevel, func(s *settings) *zerolog.Level { return &s.logLevel }),
	choice("log-format", "console or json, on stderr", parseLogFormat, func(s *settings) *string { return &s.logFormat }),
}

const roleKey = "role"

func keyNames() []string {
	names := make([]string, 0, len(keys)+1)
	for _, k := range keys {
		names = append(names, k.name)
	}
	return append(names, roleKey, hooksKey)
}

func one(words []string) (string, error) {
	if len(words) != 1 {
		return "", fmt.Errorf("one value is expected, not %d", len(words))
	}
	return words[0], nil
}

// value adapts a setting to pflag.Value: a wrong word on the command line is
// wrong usage.
type value struct {
	word  string
	kind  string
	check func(string) error
}

func (v *value) String() string { return v.word }
func (v *value) Type() string   { return v.kind }
func (v *value) Set(s string) error {
	if err := v.check(s); err != nil {
		return err
	}
	v.word = s
	return nil
}

func valueFlag(kind, def string, check func(string) error) func(*pflag.FlagSet, key) {
	return func(fs *pflag.FlagSet, k key) { fs.Var(&value{word: def, kind: kind, check: check}, k.name, k.usage) }
}

func parsed[T any](parse func(string) (T, error), field func(*settings) *T) func(*settings, []string) error {
	return func(s *settings, words []string) error {
		w, err := one(words)
		if err != nil {
			return err
		}
		v, err := parse(w)
		if err != nil {
			return err
		}
		*field(s) = v
		return nil
	}
}

func text(name, usage string, field func(*settings) *string) key {
	return key{name, usage, stringFlag, parsed(func(w string) (string, error) { return w, nil }, field)}
}

func size(name, usage string, field func(*settings) *int64) key {
	check := func(w string) error { _, err := parseSize(w); return err }
	return key{name, usage, valueFlag("size", "", check), parsed(parseSize, field)}
}

func duration(name, usage string, field func(*settings) *time.Duration) key {
	s := defaultSettings()
	check := func(w string) error { _, err := parseDuration(w); return err }
	return key{name, usage, valueFlag("duration", field(&s).String(), check), parsed(parseDuration, field)}
}

func choice[T any](name, usage string, parse func(string) (T, error), field func(*settings) *T) key {
	s := defaultSettings()
	check := func(w string) error { _, err := parse(w); return err }
	return key{name, usage, valueFlag("word", fmt.Sprint(*field(&s)), check), parsed(parse, field)}
}

// checked is a text that has to make sense.
func checked(name, usage string, check func(string) error, field func(*settings) *string) key {
	s := defaultSettings()
	return key{name, usage, valueFlag("word", *field(&s), check), parsed(func(w string) (string, error) { return w, check(w) }, field)}
}

// list is a comma separated list; its flag may also be repeated.
func list(name, usage string, check func(string) error, field func(*settings) *[]string) key {
	return key{name, usage, stringArray, func(s *settings, words []string) error {
		var all []string
		for _, w := range words {
			parts, err := commas(w, check)
			if err != nil {
				return err
			}
			all = append(all, parts...)
		}
		*field(s) = all
		return nil
	}}
}

func stringFlag(fs *pflag.FlagSet, k key)  { fs.String(k.name, "", k.usage) }
func stringArray(fs *pflag.FlagSet, k key) { fs.StringArray(k.name, nil, k.usage) }
func boolFlag(fs *pflag.FlagSet, k key)    { fs.Bool(k.name, false, k.usage) }

func trueFlag(fs *pflag.FlagSet, k key) { fs.Bool(k.name, true, k.usage) }

func commas(w string, check func(string) error) ([]string, error) {
	var parts []string
	for p := range strings.SplitSeq(w, ",") {
		p = strings.TrimSpace(p)
		if err := check(p); err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// backupKind says when a backup is fed.
type backupKind string

const (
	hotBackup  backupKind = "hot"
	coldBackup backupKind = "cold"
)

func parseBackupKind(w string) (backupKind, error) {
	switch k := backupKind(strings.ToLower(w)); k {
	case hotBackup, coldBackup:
		return k, nil
	}
	return "", fmt.Errorf("backups %q: choose hot or cold", w)
}

// setBackups takes one host for each word; within one word (an environment
// variable) blanks separate hosts.
func setBackups(s *settings, words []string) error {
	s.config.Backups, s.kinds = nil, nil
	for _, w := range words {
		for host := range strings.FieldsSeq(strings.ReplaceAll(w, ", ", ",")) {
			kind, host := splitBackup(host)
			addrs, err := commas(host, hostPort)
			if err != nil {
				return err
			}
			s.config.Backups, s.kinds = append(s.config.Backups, addrs), append(s.kinds, kind)
		}
	}
	return nil
}

// splitBackup takes the kind off that may stand before the addresses; "hot:7400" is a host of that name.
func splitBackup(w string) (backupKind, string) {
	for _, k := range []backupKind{hotBackup, coldBackup} {
		if rest, ok := strings.CutPrefix(w, string(k)+":"); ok && strings.Contains(rest, ":") {
			return k, rest
		}
	}
	return "", w
}

// hotBackups says which backups are hot, nil when none is.
func (s *settings) hotBackups() []bool {
	hot := make([]bool, len(s.kinds))
	for i, k := range s.kinds {
		hot[i] = cmp.Or(k, s.backups) == hotBackup
	}
	if !slices.Contains(hot, true) {
		return nil
	}
	return hot
}

func setPeerKeys(s *settings, words []string) error {
	s.peerKeys = nil
	for _, w := range words {
		s.peerKeys = append(s.peerKeys, strings.FieldsFunc(w, func(r rune) bool { return r == ',' || r == ' ' })...)
	}
	return nil
}

func parseCount(w string) (int, error) {
	n, err := strconv.Atoi(w)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q: give a number, 0 or more", w)
	}
	return n, nil
}

func parseBool(w string) (bool, error) {
	switch w {
	case "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	}
	return false, fmt.Errorf("%q: give true or false", w)
}

func parseNBD(w string) (string, error) {
	if path, ok := strings.CutPrefix(w, "unix:"); ok && path != "" {
		return w, nil
	}
	if strings.HasPrefix(w, "systemd:") {
		return w, nil
	}
	if err := hostPort(w); err != nil {
		return "", fmt.Errorf("address %q: give unix:PATH, HOST:PORT or systemd:NAME", w)
	}
	return w, nil
}

func hostPort(w string) error {
	host, port, err := net.SplitHostPort(w)
	if err != nil || host == "" {
		return fmt.Errorf("address %q: give HOST:PORT, an IPv6 host in brackets", w)
	}
	if _, err := net.LookupPort("tcp", port); err != nil || port == "" {
		return fmt.Errorf("address %q: %q is no port", w, port)
	}
	return nil
}

func ipAddress(w string) error {
	if _, err := netip.ParseAddr(w); err != nil {
		return fmt.Errorf("local address %q: give an IP address without a port", w)
	}
	return nil
}

func parseRole(w string) (mirror.Role, error) {
	switch w {
	case "source":
		return mirror.RolePrimary, nil
	case "target":
		return mirror.RoleSecondary, nil
	}
	return 0, fmt.Errorf("role %q: choose source or target", w)
}
