package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestUsageErrors(t *testing.T) {
	for _, tt := range []struct {
		args string
		want string
	}{
		{"statsu", `unknown command "statsu" (did you mean "status"?); see mirror-agent --help`},
		{"status --jsno", "unknown flag: --jsno; see mirror-agent status --help"},
		{"status now", `unexpected argument "now"`},
		{"mode", "missing argument async|flush|receive|durable; usage: mirror-agent mode async|flush|receive|durable"},
		{"mode fast", `unknown mode "fast"`},
		{"switch bakup", `(did you mean "backup"?)`},
		{"path", "name what to do: list, remove, reset"},
		{"path lst", `unknown command "lst" (did you mean "list"?); see mirror-agent path --help`},
		{"path reset one", "give its number"},
		{"path remove", "ID"},
		{"path remove one", "give its number"},
		{"config check", "missing argument FILE"},
		{"run", "missing --config FILE"},
		{"source --name a", "missing --device"},
		{"target --name a --device d", "missing --listen"},
		{"source --name a --device d --nbd unix:n --size much", `size "much"`},
		{"source --mode fast", `unknown mode "fast"`},
		{"demo --json", "--drill"},
		{"demo --size 1MiB", "at least 32 MiB"},
		{"promote --nbd here", "unix:PATH"},
		{"keygen --show --force", "show"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			code, out, err := newTestApp(t).exec(t, strings.Fields(tt.args)...)
			if code != exitUsage || out != "" || !strings.Contains(err, tt.want) {
				t.Errorf("code %d, stdout %q, stderr %q\nwant 2 and …%s…", code, out, err, tt.want)
			}
			oneErrorLine(t, err)
		})
	}
}

func oneErrorLine(t *testing.T, stderr string) {
	t.Helper()
	if !strings.HasPrefix(stderr, "mirror-agent: ") || strings.Count(stderr, "\n") != 1 || !strings.HasSuffix(stderr, "\n") {
		t.Errorf("not one line of ours on stderr: %q", stderr)
	}
}

func TestFailures(t *testing.T) {
	for _, tt := range []struct{ name, args, want string }{
		{"no agent at all", "status", "no agent runs here"},
		{"none of that name", "status --name vol9", "vol9.sock: start it"},
		{"none at that socket", "explain --control /nowhere/x.sock", "no agent answers at /nowhere/x.sock"},
		{"no file", "run --config /nowhere.yaml", "config open /nowhere.yaml: no such file"},
		{"no key", "target --name a --device d --listen 127.0.0.1:0", "create it with `mirror-agent keygen`"},
		{"bad name", "target --name a/b --device d --listen 127.0.0.1:0 --insecure", `name "a/b"`},
		{"no key to show", "keygen --show", "no such file; create it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, _, err := newTestApp(t).exec(t, strings.Fields(tt.args)...)
			if code != exitFailed || !strings.Contains(err, tt.want) {
				t.Errorf("code %d, stderr %q\nwant 1 and …%s…", code, err, tt.want)
			}
			oneErrorLine(t, err)
		})
	}
}

func TestHelpAndVersion(t *testing.T) {
	a := newTestApp(t)
	for _, args := range []string{"", "--help", "help", "status --help", "demo --help", "version", "version --json", "completion bash"} {
		code, out, err := a.exec(t, strings.Fields(args)...)
		if code != exitDone || out == "" || err != "" {
			t.Errorf("%q: code %d, stdout %.40q, stderr %q", args, code, out, err)
		}
	}
	for _, c := range newRoot(&a.app).Commands() {
		if c.Short == "" || c.Name() != "help" && c.Name() != "completion" && c.GroupID == "" {
			t.Errorf("%s has no help or no group", c.Name())
		}
	}
}

func TestKeygen(t *testing.T) {
	a := newTestApp(t)
	file := filepath.Join(t.TempDir(), "k")
	code, public, stderr := a.exec(t, "keygen", "--key", file)
	if code != 0 || !strings.HasPrefix(public, "ed25519:") {
		t.Fatalf("code %d, %q, %q", code, public, stderr)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, shown, _ := a.exec(t, "keygen", "--key", file, "--show"); shown != public {
		t.Errorf("--show: %q, want %q", shown, public)
	}
	code, _, stderr = a.exec(t, "keygen", "--key", file)
	if code != exitFailed || !strings.Contains(stderr, "exists") {
		t.Errorf("again: code %d, %q", code, stderr)
	}
	if _, shown, _ := a.exec(t, "keygen", "--key", file, "--show"); shown != public {
		t.Errorf("the key was changed: %q", shown)
	}
	code, other, _ := a.exec(t, "keygen", "--key", file, "--force")
	if _, shown, _ := a.exec(t, "keygen", "--key", file, "--show"); code != 0 || other == public || shown != other {
		t.Errorf("--force: code %d, %q, shown %q", code, other, shown)
	}
	// Without --key it goes to its own place, whose directory is made.
	if code, _, stderr := a.exec(t, "keygen"); code != 0 {
		t.Errorf("default place: %s", stderr)
	}
}

func TestConfigCheck(t *testing.T) {
	a := newTestApp(t)
	_, key, _ := a.exec(t, "keygen")
	good := writeFile(t, "good.yaml", "role: source\nname: vol0\ndevice: /srv/v\nnbd: unix:/n\ntarget: 10.0.0.1:7400\nbackup: 10.0.0.2:7400\npeer-key: "+key)
	code, out, stderr := a.exec(t, "config", "check", good)
	if code != 0 || !strings.Contains(out, "ok\n  source of vol0: /srv/v, served at unix:/n, mode flush, target 10.0.0.1:7400, backup 1 10.0.0.2:7400, switch manual") {
		t.Errorf("code %d, %q, %q", code, out, stderr)
	}
	for name, tt := range map[string]struct{ file, want string }{
		"peer":    {"role: source\nname: v\ndevice: d\nnbd: unix:/n\ntarget: 10.0.0.1:1\npeer-key: ed25519:short\n", "peer-key: public key"},
		"nobody":  {"role: source\nname: v\ndevice: d\nnbd: unix:/n\ntarget: 10.0.0.1:1\n", "no other host's key"},
		"mistake": {"role: target\nname: v\nlisten: 10.0.0.1:1\n", "bad.yaml: device:"},
	} {
		code, _, stderr := a.exec(t, "config", "check", writeFile(t, "bad.yaml", tt.file))
		if code != exitFailed || !strings.Contains(stderr, tt.want) {
			t.Errorf("%s: code %d, %q", name, code, stderr)
		}
		oneErrorLine(t, stderr)
	}
}
