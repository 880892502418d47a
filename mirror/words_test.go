package mirror

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"mirror-agent/dataport"
)

// Every state of every machine has words, and no words are left of a state that there is not.
func TestWords_complete(t *testing.T) {
	want := map[string][]string{SubjectMirror: reportedStates(t)}
	for _, r := range []Role{RolePrimary, RoleSecondary} {
		want[SubjectRole] = append(want[SubjectRole], r.String())
	}
	for s, row := range followerTransitions {
		want[SubjectFollower] = append(want[SubjectFollower], string(s))
		for _, next := range row {
			want[SubjectFollower] = append(want[SubjectFollower], string(next))
		}
	}
	// The names of the port's machines end where a number takes their place.
	for s := dataport.PortState(0); s.String() != fmt.Sprintf("PortState(%d)", s); s++ {
		want[SubjectPort] = append(want[SubjectPort], s.String())
	}
	for s := dataport.PathState(0); s.String() != fmt.Sprintf("PathState(%d)", s); s++ {
		want[SubjectPath] = append(want[SubjectPath], s.String())
	}
	for subject, states := range want {
		slices.Sort(states)
		states = slices.Compact(states)
		if len(states) < 2 {
			t.Errorf("%s: only %q was found", subject, states)
		}
		if got := StatesOf(subject); !slices.Equal(got, states) {
			t.Errorf("%s: there are words for\n%q, the states are\n%q: complete mirror/words.go", subject, got, states)
		}
		for _, s := range states {
			w, _ := WordsFor(subject, s)
			if w.Means == "" || w.ByItself == "" {
				t.Errorf("%s %q: says not what it means, or not what happens by itself", subject, s)
			}
		}
	}
	if len(words) != len(want) {
		t.Errorf("%d subjects have words, %d are checked", len(words), len(want))
	}
}

// reportedStates are the values of state in every stateReport of this package's source: literals, and constants of it, whose
// names begin with state where they are assigned later.
func reportedStates(t *testing.T) (states []string) {
	t.Helper()
	files, constants := parsePackage(t)
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			if a, ok := n.(*ast.AssignStmt); ok { // s.state = stateSomething
				for i, l := range a.Lhs {
					if sel, ok := l.(*ast.SelectorExpr); ok && sel.Sel.Name == "state" && i < len(a.Rhs) {
						if name, ok := a.Rhs[i].(*ast.Ident); ok && strings.HasPrefix(name.Name, "state") && constants[name.Name] != "" {
							states = append(states, constants[name.Name])
						}
					}
				}
			}
			c, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			if name, ok := c.Type.(*ast.Ident); !ok || name.Name != "stateReport" {
				return true
			}
			for _, e := range c.Elts {
				kv, ok := e.(*ast.KeyValueExpr)
				if !ok || kv.Key.(*ast.Ident).Name != "state" {
					continue
				}
				s, ok := stringOf(kv.Value, constants)
				if !ok {
					t.Errorf("a stateReport whose state is neither a literal nor a constant: %v", kv.Value)
				}
				states = append(states, s)
			}
			return true
		})
	}
	return states
}

func stringOf(e ast.Expr, constants map[string]string) (string, bool) {
	switch x := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(x.Value)
		return s, err == nil
	case *ast.Ident:
		s, ok := constants[x.Name]
		return s, ok
	case *ast.CallExpr: // string(constant)
		if len(x.Args) == 1 {
			return stringOf(x.Args[0], constants)
		}
	}
	return "", false
}

// parsePackage returns the files of this package and its string constants.
func parsePackage(t *testing.T) (files []*ast.File, constants map[string]string) {
	t.Helper()
	set := token.NewFileSet()
	constants = map[string]string{}
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
		ast.Inspect(f, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			for i, name := range v.Names {
				if i < len(v.Values) {
					if b, ok := v.Values[i].(*ast.BasicLit); ok && b.Kind == token.STRING {
						constants[name.Name], _ = strconv.Unquote(b.Value)
					}
				}
			}
			return true
		})
	}
	return files, constants
}
