package integration

import (
	"fmt"
	"strings"
	"testing"
)

// TestPostgresJudge: the judge of drills of PostgreSQL sees what may be wrong with rows.
func TestPostgresJudge(t *testing.T) {
	// Client 1 has two answered and one begun, client 2 one; 2's began after both of 1's were answered.
	p := &postgres{rows: map[int][]committed{1: {{1, 2}, {3, 4}, {7, 0}}, 2: {{5, 6}}}}
	text := func(rows ...[2]int) string {
		var b strings.Builder
		for _, r := range rows {
			fmt.Fprintf(&b, "%d|%d|%s\n", r[0], r[1], row(r[1]+r[0]))
		}
		return b.String()
	}
	least, most := map[int]int{1: 1}, map[int]int{1: 3, 2: 1}
	for _, c := range []struct{ name, rows, sums, want string }{
		{"all", text([2]int{1, 1}, [2]int{1, 2}, [2]int{1, 3}, [2]int{2, 1}), "1|3\n2|1\n", ""},
		{"what was answered", text([2]int{1, 1}, [2]int{1, 2}, [2]int{2, 1}), "1|2\n2|1\n", ""},
		{"the least", text([2]int{1, 1}), "1|1\n2|0\n", ""},
		{"a gap", text([2]int{1, 1}, [2]int{1, 3}), "1|2\n2|0\n", "after row 1 comes row 3"},
		{"twice", text([2]int{1, 1}, [2]int{1, 1}), "1|2\n2|0\n", "after row 1 comes row 1"},
		{"another text", strings.Replace(text([2]int{1, 1}), "row 4", "row 5", 1), "1|1\n2|0\n", "comes row 1 with"},
		{"half a transaction", text([2]int{1, 1}, [2]int{1, 2}), "1|1\n2|0\n", "its sum says 1"},
		{"less than committed", "", "1|0\n2|0\n", "client 1 has 0 rows; 1 were committed"},
		{"more than begun", text([2]int{1, 1}, [2]int{1, 2}, [2]int{2, 1}, [2]int{2, 2}), "1|2\n2|2\n", "1 were ever begun"},
		{"no prefix over clients", text([2]int{1, 1}, [2]int{2, 1}), "1|1\n2|1\n", "its next was committed before"},
	} {
		err := p.judge(c.rows, c.sums, least, most)
		if got := fmt.Sprint(err); (c.want == "") != (err == nil) || !strings.Contains(got, c.want) && c.want != "" {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}
