package mirror

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
)

// electorateStore keeps the list of members in a file beside the journal, or
// beside the device when only that is a file. All methods may be called from
// any goroutine.
type electorateStore struct {
	path   string // "": there is no place for it
	mirror func() string

	changing sync.Mutex // one change of a primary at a time; before mu

	mu  sync.Mutex // guards all below; held while the file is written
	now electorate
	err error // why nothing is known
}

var errNoElectors = errors.New("this host was never told who the members are")

const maxElectorateFile = 1 << 20

// electoratePath is where the list of c's volume is kept.
func (c *Config) electoratePath() string { return c.beside(".electorate") }

func openElectorate(path string, mirror func() string) *electorateStore {
	s := &electorateStore{path: path, mirror: mirror}
	s.now, s.err = s.read()
	return s
}

func (s *electorateStore) read() (e electorate, err error) {
	if s.path == "" {
		return e, errNoElectors
	}
	st, err := os.Stat(s.path)
	if errors.Is(err, os.ErrNotExist) {
		return e, errNoElectors
	}
	if err == nil && st.Size() > maxElectorateFile {
		err = fmt.Errorf("%s: %d bytes", s.path, st.Size())
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(s.path)
	}
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	if err == nil {
		err = e.validate()
	}
	if err != nil {
		return electorate{}, fmt.Errorf("the list of members %s cannot be read: %w; the source tells it anew", s.path, err)
	}
	return e, nil
}

// list returns what is known of the members; an error when nothing is.
func (s *electorateStore) list() (electorate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && s.now.Mirror != s.mirror() {
		return electorate{}, errNoElectors // of another mirror that was here once
	}
	return s.now, s.err
}

// set returns once e is durable and known. What is newer already stays.
func (s *electorateStore) set(e electorate) (news bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.Mirror = s.mirror()
	if s.err == nil && s.now.Mirror == e.Mirror && !e.newer(&s.now) {
		return false, nil
	}
	if s.path == "" {
		return false, fmt.Errorf("there is no place for the list of members: %w", errNoPlace)
	}
	b, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return false, err
	}
	if err := replaceFile(s.path, append(b, '\n')); err != nil {
		return false, fmt.Errorf("the list of members: %w", err)
	}
	s.now, s.err = e, nil
	return true, nil
}
