package integration

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// scratch holds what the whole run shares: the binary.
var scratch string

// baseSeed is where everything random begins; a failing test prints it.
var baseSeed = uint64(time.Now().UnixNano())

func TestMain(m *testing.M) {
	if os.Getenv(portProcessVar) != "" {
		os.Exit(portProcessMain())
	}
	if os.Getenv(guestRelayVar) != "" {
		os.Exit(guestRelayMain())
	}
	if device := os.Getenv(overwriteVar); device != "" {
		os.Exit(overwriteMain(device))
	}
	if s := os.Getenv("MIRROR_AGENT_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			fmt.Fprintln(os.Stderr, "MIRROR_AGENT_SEED:", err)
			os.Exit(2)
		}
		baseSeed = n
	}
	if raceBinary() && os.Getenv("GORACE") == "" {
		os.Setenv("GORACE", "atexit_sleep_ms=0") // else every command takes a second
	}
	dir, err := os.MkdirTemp("", "mirror-agent-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	scratch = dir
	code := m.Run()
	os.RemoveAll(scratch)
	os.Exit(code)
}

var buildOnce = sync.OnceValues(func() (string, error) {
	if b := os.Getenv("MIRROR_AGENT_BIN"); b != "" {
		return filepath.Abs(b)
	}
	// go test keeps the result of a test as long as what it has looked at stays the same, and what it starts it does not see: look at
	// all that the binary is made of.
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && slices.Contains([]string{"../.git", "../bin", "../bench-data", "../demo-data"}, path) {
			return filepath.SkipDir
		}
		return err
	})
	if err != nil {
		return "", err
	}
	bin := filepath.Join(scratch, "mirror-agent")
	args := []string{"build", "-trimpath", "-ldflags", "-X main.version=v0.0.0-test", "-o", bin}
	env := append(os.Environ(), "CGO_ENABLED=0")
	if raceBinary() {
		args = append(args, "-race")
		env = append(os.Environ(), "CGO_ENABLED=1")
	}
	cmd := exec.Command("go", append(args, "./cmd/mirror-agent")...)
	cmd.Dir = ".."
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return bin, nil
})

func raceBinary() bool { return os.Getenv("MIRROR_AGENT_RACE") == "1" }

// program returns the path of the program under test.
func program(t testing.TB) string {
	t.Helper()
	b, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// newRand returns a source of the run's randomness; a failure prints the seed.
func newRand(t testing.TB) *rand.Rand {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("run again with MIRROR_AGENT_SEED=%d", baseSeed)
		}
	})
	return rand.New(rand.NewPCG(baseSeed, uint64(len(t.Name()))))
}

// rounds is how often a kill test repeats its fault.
func rounds(t testing.TB, standard int) int {
	s := os.Getenv("MIRROR_AGENT_ROUNDS")
	if s == "" {
		return standard
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("MIRROR_AGENT_ROUNDS=%q: a positive number is needed", s)
	}
	return n
}

// needRoot skips a test that mounts or makes namespaces for who may not.
func needRoot(t testing.TB, what string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("needs root: %s", what)
	}
}

// needTools skips a test whose programs are missing.
func needTools(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: run scripts/deps.sh", tool)
		}
	}
}
