package mirror

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"
	"testing"
)

// Every kind of event that this package can tell of is named, and nothing else is: a hook may only ask for what there is.
func TestEventKinds(t *testing.T) {
	files, constants := parsePackage(t)
	found := map[string]bool{}
	prefixes := map[string]bool{}
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			switch x := n.(type) {
			case *ast.CallExpr:
				sel, ok := x.Fun.(*ast.SelectorExpr)
				if !ok || sel.Sel.Name != "event" || len(x.Args) < 3 {
					return true
				}
				if s, ok := stringOf(x.Args[0], constants); ok {
					found[s] = true
				} else if b, ok := x.Args[0].(*ast.BinaryExpr); ok && b.Op == token.ADD {
					s, _ := stringOf(b.X, constants)
					prefixes[s] = true
				} else if name, ok := x.Args[0].(*ast.Ident); !ok || name.Name != "kind" {
					t.Errorf("an event whose kind cannot be told: %v", x.Args[0])
				}
			case *ast.AssignStmt: // kind := "verify-" + state
				for i, l := range x.Lhs {
					if name, ok := l.(*ast.Ident); ok && name.Name == "kind" && i < len(x.Rhs) {
						if b, ok := x.Rhs[i].(*ast.BinaryExpr); ok {
							s, _ := stringOf(b.X, constants)
							prefixes[s] = true
						}
					}
				}
			}
			return true
		})
	}
	for s := range followerTransitions {
		found["follower-"+string(s)] = true
	}
	for _, k := range portEventKinds {
		if k != portSessionUp && k != portSessionDown { // which are told of as states of a follower or a source
			found[string(k)] = true
		}
	}
	if want := map[string]bool{"follower-": true, "verify-": true}; len(prefixes) != len(want) || !prefixes["follower-"] || !prefixes["verify-"] {
		t.Errorf("kinds begin with %v: their ends have to be known here too", prefixes)
	}
	for _, s := range []string{VerifyDone, VerifyStopped, VerifyFailed} {
		found["verify-"+s] = true
	}
	for k := range found {
		if !slices.Contains(EventKinds(), k) {
			t.Errorf("%q is not in mirror/eventkinds.go", k)
		}
	}
	for _, k := range EventKinds() {
		if !found[k] {
			t.Errorf("%q is in mirror/eventkinds.go, and nothing tells of it", k)
		}
		if EventMeaning(k) == "" || strings.ContainsAny(k, " =,") && k != stateDamaged {
			t.Errorf("%q: no words, or a name that cannot be written in a flag", k)
		}
	}
}
