package hook

import (
	"strings"
	"testing"
	"time"

	"mirror-agent/mirror"
)

func TestExpand(t *testing.T) {
	for _, tt := range []struct {
		names string
		yes   string
		no    string
		err   string
	}{
		{"promoted", "promoted", "fenced", ""},
		{"role,alarm-raised", "promoted fenced serving alarm-raised", "alarm-cleared mode", ""},
		{"resync", "follower-resync resynced", "follower-down", ""},
		{"all", "promoted mode path-up", "", ""},
		{"mode,all", "promoted mode path-up", "", ""},
		{"promotd", "", "", `no event is called "promotd"; there are alarm, all, `},
		{"", "", "", "no event"},
	} {
		var names []string
		if tt.names != "" {
			names = strings.Split(tt.names, ",")
		}
		kinds, err := Expand(names)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v, want …%s…", tt.names, err, tt.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.names, err)
		}
		q := queue{kinds: kinds}
		for k := range strings.FieldsSeq(tt.yes) {
			if !q.wants(k) {
				t.Errorf("%s does not want %s", tt.names, k)
			}
		}
		for k := range strings.FieldsSeq(tt.no) {
			if q.wants(k) {
				t.Errorf("%s wants %s", tt.names, k)
			}
		}
	}
}

// An error lists every name, and every name is one.
func TestNames(t *testing.T) {
	_, err := Expand([]string{"nonsense"})
	for _, n := range Names() {
		if _, e := Expand([]string{n}); e != nil {
			t.Error(e)
		}
		if !strings.Contains(err.Error(), n) {
			t.Errorf("%v: does not list %s", err, n)
		}
	}
	for g, kinds := range groups {
		for _, k := range kinds {
			if mirror.EventMeaning(k) == "" {
				t.Errorf("%s: there is no event %q", g, k)
			}
		}
	}
}

func TestParse(t *testing.T) {
	h, err := Parse("promoted, fenced=logger -t x a=b")
	if err != nil || strings.Join(h.On, "|") != "promoted|fenced" || h.Run[2] != "logger -t x a=b" || h.Timeout != DefaultTimeout {
		t.Errorf("%+v, %v", h, err)
	}
	for in, want := range map[string]string{
		"promoted": "EVENT[,EVENT]=COMMAND", "promoted=": "EVENT[,EVENT]=COMMAND", "=true": `""`, "x=true": `no event is called "x"`,
	} {
		if _, err := Parse(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want …%s…", in, err, want)
		}
	}
	for want, h := range map[string]Hook{
		"no command": {On: []string{"all"}},
		"no event":   {Run: []string{"true"}},
		"positive":   {On: []string{"all"}, Run: []string{"true"}, Timeout: -time.Second},
	} {
		if err := h.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want …%s…", h, err, want)
		}
	}
}
