package mirror

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"reflect"
	"slices"
)

// Where the other members listen: a secondary keeps what its source tells of them in a small file beside the journal (or the
// device), so that it finds them also when it was restarted before, or after, it is promoted. A file that is missing or damaged costs
// that: those who dial come all the same.

// memberInfo is what is kept of a member.
type memberInfo struct {
	ID        [16]byte `json:"id"`
	Node      string   `json:"node"`
	Addresses []string `json:"addresses,omitempty"`
	Fed       bool     `json:"fed"`  // it gets all that is written, all the time
	Home      bool     `json:"home"` // the source by configuration
}

const (
	maxMemberFile      = 64 << 10
	maxMemberAddresses = 16
)

// memberPath is where they are kept, "" when there is no place.
func (c *Config) memberPath() string { return c.beside(".members") }

func (a *Agent) loadMembers() {
	b, err := os.ReadFile(a.c.memberPath())
	var ms []memberInfo
	if err == nil && len(b) <= maxMemberFile {
		err = json.Unmarshal(b, &ms)
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			a.log.Warn().Err(err).Msg("where the other members listen is not known")
		}
		return
	}
	a.members = ms
}

// noteMembers keeps what the source has told, if that is news.
func (a *Agent) noteMembers(told []member) {
	var ms []memberInfo
	for _, m := range told {
		if m.ID != a.v.id && m.ID != [16]byte{} {
			ms = append(ms, memberInfo{ID: m.ID, Node: m.Node, Addresses: m.Addresses[:min(len(m.Addresses), maxMemberAddresses)], Fed: m.Fed, Home: m.Home})
		}
	}
	slices.SortFunc(ms, func(x, y memberInfo) int { return slices.Compare(x.ID[:], y.ID[:]) })
	a.mu.Lock()
	news := !reflect.DeepEqual(ms, a.members)
	a.members = ms
	a.mu.Unlock()
	path := a.c.memberPath()
	if !news || path == "" {
		return
	}
	b, err := json.Marshal(ms)
	if err == nil {
		err = replaceFile(path, b)
	}
	if err != nil {
		a.log.Warn().Err(err).Msg("where the other members listen cannot be kept")
	}
}

// roster fills in what the members told to a follower are called and where they listen.
func (a *Agent) roster(ms []member) {
	self := a.transport.announced()
	a.mu.Lock()
	defer a.mu.Unlock()
	for k := range ms {
		m := &ms[k]
		if m.ID == a.v.id {
			m.Node, m.Addresses, m.Fed, m.Home = a.node, self, true, a.c.Role == RolePrimary
			continue
		}
		for i, f := range a.followers {
			if f.id == m.ID {
				m.Node, m.Addresses, m.Fed, m.Home = f.target, f.addresses, a.fedLocked(i), f.home
			}
		}
	}
}
