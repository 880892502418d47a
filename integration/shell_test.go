package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestShellcheck: every script, by what its first line says it is.
func TestShellcheck(t *testing.T) {
	needTools(t, "shellcheck")
	n := 0
	for _, file := range sourceFiles(t) {
		path := filepath.Join("..", file)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		first, _, _ := bytes.Cut(b, []byte("\n"))
		if !bytes.HasPrefix(first, []byte("#!")) || !bytes.HasSuffix(first, []byte("sh")) {
			continue
		}
		n++
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode()&0o111 == 0 {
			t.Errorf("%s begins with #! and is not executable", file)
		}
		if out, err := tryTool(toolTimeout, "shellcheck", path); err != nil {
			t.Errorf("shellcheck %s: %v\n%s", file, err, out)
		}
	}
	if n == 0 {
		t.Error("no script was found")
	}
}
