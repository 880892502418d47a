package mirror

import (
	"fmt"
	"hash/maphash"
	"os"
	"strconv"
	"testing"
	"time"

	"mirror-agent/journal"
)

// A model of the protocol that asks the machines of the product themselves:
// decide (handshake.go), the followers' states (progress.go), the mode's word
// (word.go), votes and elections (vote.go). It goes through every order, within
// bounds, in which writes, fdatasyncs, records, words of what is durable,
// acknowledgements, FLUSHes, kills, power losses (any part of what was not synced
// is gone), isolations of a host, switch-overs, promotions (by majority, and
// forced), rejoins and resyncs can happen, breadth first, so that what it finds is
// the shortest way there.
//
// One record is one LSN. A record is a number that no other one has, and a
// generation is told by its index in a table, so equal logs are equal for ever.
//
// Beside the machines it has as few rules of its own as possible; those of
// receiver.hello and of the agent's vote are here in a line each, see connect and
// vote. A resync begins, is streamed to, has copied all, and is taken over; until
// then the follower is what it was before. Not in the model: what a copy holds
// block by block (TestResyncUnderWrites), rot, a log that overflows, two disks.

const (
	modelNodes   = 3
	modelLog     = 7
	modelGens    = 6
	genRecord    = 200 // records from here on begin the generation of that index
	modelHistory = "m"
)

type modelNode struct {
	log                   [modelLog]uint8
	n, dur, decl, touched uint8 // head, durable, declared durable by its source, in the backing device
	seen, own             uint8 // generations: the highest stored, and of a primary its own
	up, prim, fenced      bool
	asking                uint8 // the generation it is a candidate for, 0: none
	votes                 uint8 // bits of who gave their word, its own among them
	stager                uint8 // 1 + the source that copies its state here, beside its own; 0: none
	staged                uint8 // up to where the records have come to the copy
	copied                bool
}

type modelMember struct {
	received, durable, need uint8
	level                   bool
}

type modelWord struct {
	members          [modelNodes]modelMember
	answered, active uint8
	standing         standing
}

type modelGen struct{ major, minor uint8 }

type modelState struct {
	node     [modelNodes]modelNode
	word     [modelNodes]modelWord
	follower [modelNodes][modelNodes]uint8 // as the primary sees it, an index of modelFollower
	fed      [modelNodes][modelNodes]bool  // there is a session, and records flow
	isolated [modelNodes]bool
	gen      [modelGens]modelGen
	gens     uint8
	record   uint8

	writes, faults, promotions uint8

	flushed [modelLog]uint8 // what a FLUSH was answered for, by a source with a target that counts
	nflush  uint8
	flushBy uint8 // its generation
}

var modelFollower = []FollowerState{FollowerConnecting, FollowerHandshake, FollowerCatchUp, FollowerStreaming, FollowerDown, FollowerRefused, FollowerResync, FollowerIdle}

func modelFollowerIndex(s FollowerState) uint8 {
	for i, f := range modelFollower {
		if f == s {
			return uint8(i)
		}
	}
	panic("mirror: a follower's state that the model does not know: " + string(s))
}

// modelBounds of a search.
type modelBounds struct {
	nodes                      int
	writes, faults, promotions uint8
	forced                     bool
	replaced                   bool // at the start an old primary with a write of its own has just come back
	states                     int
}

// modelStep says what happened.
type modelStep struct {
	what    string
	a, b, c int
}

func (x modelStep) String() string { return fmt.Sprintf("%s %d %d %d", x.what, x.a, x.b, x.c) }

// protocolModel is one search.
type protocolModel struct {
	modelBounds
	seed  maphash.Seed
	known map[uint64]struct{}
	order []modelState
	from  []int32
	step  []modelStep
	taken map[string]int // how often each step, also to states that were known
	wrong string
	now   int32 // the state that is gone on from
	list  electorate
}

func (m *protocolModel) start() *modelState {
	s := &modelState{gens: 1, record: 1, nflush: 1}
	s.gen[0] = modelGen{1, 0}
	s.flushed[0] = genRecord
	for i := range m.nodes {
		s.node[i] = modelNode{n: 1, dur: 1, decl: 1, touched: 1, up: true, prim: i == 0}
		s.node[i].log[0] = genRecord
		for j := range m.nodes {
			s.follower[i][j] = modelFollowerIndex(FollowerConnecting)
		}
	}
	w := &s.word[0]
	w.active, w.standing, w.answered = 1, isCounting, 1
	for j := 1; j < m.nodes; j++ {
		s.fed[0][j] = true
		s.follower[0][j] = modelFollowerIndex(FollowerStreaming)
		w.members[j] = modelMember{received: 1, durable: 1, level: true}
	}
	m.list = listOf(1)
	for i := range m.nodes {
		m.list.Members = append(m.list.Members, elector{ID: memberID{byte(i + 1)}})
	}
	if m.replaced {
		m.replace(s)
	}
	return s
}

// replace: node 0 has written alone; 1 leads in its place, with what others there are.
func (m *protocolModel) replace(s *modelState) {
	old := &s.node[0]
	old.log[old.n] = s.record
	s.record++
	old.n++
	old.dur = old.n
	m.begin(s, 1, 2, 0, s.gens)
	old.seen, old.fenced = s.node[1].own, true
	for j := range m.nodes {
		s.fed[0][j] = false
	}
	s.follower[1][0] = modelFollowerIndex(FollowerRefused)
}

// generation is that of an index as the product has it.
func (s *modelState) generation(i uint8, first int) journal.Generation {
	g := s.gen[i]
	return journal.Generation{Major: uint32(g.major), Minor: uint32(g.minor), ID: [16]byte{i + 1}, First: journal.LSN(first)}
}

func (s *modelState) history(i int) (gs []journal.Generation) {
	x := &s.node[i]
	gs = make([]journal.Generation, 0, 4)
	for k, r := range x.log[:x.n] {
		if r >= genRecord {
			gs = append(gs, s.generation(r-genRecord, k))
		}
	}
	return gs
}

// newest is the last generation in a log.
func (s *modelState) newest(i int) uint8 {
	x := &s.node[i]
	for k := int(x.n) - 1; k >= 0; k-- {
		if x.log[k] >= genRecord {
			return x.log[k] - genRecord
		}
	}
	return 0
}

func (x *modelNode) chain(at journal.LSN) uint64 {
	c := uint64(1469598103934665603)
	for _, r := range x.log[:at] {
		c = (c ^ uint64(r)) * 1099511628211
	}
	return c
}

// committed is what may reach the backing device.
func (x *modelNode) committed() uint8 {
	if x.prim {
		return x.dur
	}
	return min(x.dur, x.decl)
}

func (x *modelNode) trim(to uint8) {
	for k := to; k < modelLog; k++ {
		x.log[k] = 0
	}
	x.n, x.dur, x.decl = min(x.n, to), min(x.dur, to), min(x.decl, to)
}

func (x *modelNode) serves() bool { return x.up && x.prim && !x.fenced }

func (s *modelState) reach(i, j int) bool {
	return s.node[i].up && s.node[j].up && !s.isolated[i] && !s.isolated[j]
}

// begin writes a generation's record, durably, and makes i its primary.
func (m *protocolModel) begin(s *modelState, i int, major, minor uint8, index uint8) {
	x := &s.node[i]
	if int(index) == int(s.gens) {
		s.gens++
	}
	s.gen[index] = modelGen{major, minor}
	x.log[x.n] = genRecord + index
	x.n++
	x.dur, x.own, x.prim, x.fenced, x.asking, x.votes = x.n, index, true, false, 0, 0
	if compareRank(s.generation(index, 0), s.generation(x.seen, 0)) > 0 {
		x.seen = index
	}
	active := uint8((i + 1) % m.nodes)
	s.word[i] = modelWord{active: active, answered: x.n}
	for j := range m.nodes {
		s.fed[i][j], s.fed[j][i] = false, false
		s.follower[i][j] = modelFollowerIndex(FollowerConnecting)
	}
}

// asWord runs a machine of word.go.
func (m *protocolModel) asWord(s *modelState, i int, f func(w *word)) {
	x := &s.word[i]
	w := word{mode: ModeFlush, onLoss: OnLossContinue, answered: journal.LSN(x.answered), active: int(x.active), standing: x.standing, members: make([]memberWord, m.nodes)}
	for j := range m.nodes {
		y := x.members[j]
		w.members[j] = memberWord{received: journal.LSN(y.received), durable: journal.LSN(y.durable), need: journal.LSN(y.need), level: y.level}
	}
	f(&w)
	x.answered, x.active, x.standing = uint8(w.answered), uint8(w.active), w.standing
	for j, y := range w.members {
		x.members[j] = modelMember{received: uint8(y.received), durable: uint8(y.durable), need: uint8(y.need), level: y.level}
	}
}

func (s *modelState) transition(i, j int, e followerEvent) {
	s.follower[i][j] = modelFollowerIndex(nextFollowerState(modelFollower[s.follower[i][j]], e))
}

func (m *protocolModel) news(s *modelState, i, j int, n levelNews) {
	switch n {
	case cameLevel:
		s.transition(i, j, followerCaughtUp)
	case fellBehind:
		s.transition(i, j, followerBehind)
	case noNews:
	}
}

// connect: source i shakes hands with j.
func (m *protocolModel) connect(s *modelState, i, j int) {
	x, y := &s.node[i], &s.node[j]
	mine := s.generation(x.own, 0)
	seen := s.generation(y.seen, 0)
	s.transition(i, j, followerConnected)
	m.asWord(s, i, func(w *word) { w.session(j) })
	f := followerState{
		Mirror: modelHistory, Node: "n", Primary: y.prim, Seen: seen, Generations: s.history(j),
		Head: journal.LSN(y.n), Chain: y.chain(journal.LSN(y.n)), Committed: journal.LSN(max(y.committed(), y.touched)),
	}
	if y.prim { // acceptSource
		f.Refused = "is primary"
		if compareRank(mine, s.generation(y.own, 0)) > 0 {
			y.fenced = true
			for k := range m.nodes {
				s.fed[j][k] = false
			}
		}
	}
	accepted := f.Refused == "" && compareRank(seen, mine) <= 0
	if accepted { // nobody else feeds it, and the generation is stored first
		for k := range m.nodes {
			s.fed[k][j] = false
		}
		if compareRank(seen, mine) < 0 {
			y.seen = x.own
		}
	}
	out := decide(sourceView{
		mirror: modelHistory, generations: s.history(i), head: journal.LSN(x.n), chainAt: func(at journal.LSN) (uint64, error) { return x.chain(at), nil },
	}, f)
	switch out.kind {
	case outcomeFenced:
		x.fenced = true
		for k := range m.nodes {
			s.fed[i][k] = false
		}
		s.transition(i, j, followerRefuse)
	case outcomeStream:
		at := uint8(out.at)
		if !accepted {
			m.wrong = fmt.Sprintf("%d feeds %d, which did not accept it", i, j)
			return
		}
		if y.chain(out.at) != out.chain {
			s.transition(i, j, followerRefuse)
			return
		}
		if at < max(y.committed(), y.touched) {
			m.wrong = fmt.Sprintf("%d cuts its log to %d although %d records are committed and %d in its device", j, at, y.committed(), y.touched)
			return
		}
		y.trim(at)
		s.fed[i][j] = true
		s.transition(i, j, followerStream)
	default:
		s.transition(i, j, followerRefuse)
		m.asWord(s, i, func(w *word) { w.giveUp(j) })
	}
}

// rejoin: what j has of its own is exported by the operator, and a copy of i begins; what j had stays until that is complete.
func (m *protocolModel) rejoin(s *modelState, i, j int) {
	x, y := &s.node[i], &s.node[j]
	y.prim, y.fenced, y.seen, y.asking, y.votes = false, false, x.own, 0, 0
	y.stager, y.staged, y.copied = uint8(i+1), x.n, false
	for k := range m.nodes {
		s.fed[k][j], s.fed[j][k] = false, false
	}
	s.fed[i][j] = true
	m.asWord(s, i, func(w *word) { w.session(j) })
	s.follower[i][j] = modelFollowerIndex(FollowerHandshake)
	s.transition(i, j, followerNeedsResync)
}

// takeOver: the copy of i is complete, and j's own now. What it says is committed is durable at i first.
func (m *protocolModel) takeOver(s *modelState, i, j int) {
	x, y := &s.node[i], &s.node[j]
	x.dur = max(x.dur, y.staged)
	y.log, y.n = x.log, x.n
	y.trim(y.staged)
	y.dur, y.decl, y.touched = y.n, y.n, y.n
	y.stager, y.staged, y.copied = 0, 0, false
	s.transition(i, j, followerCopied)
}

func (m *protocolModel) voter(s *modelState, j int) voter {
	y := &s.node[j]
	v := voter{
		mirror: modelHistory, id: [16]byte{byte(j + 1)}, list: m.list, seen: s.generation(y.seen, 0), serves: y.prim && !y.fenced,
		position: position{s.generation(s.newest(j), 0), journal.LSN(y.n)},
	}
	for k := range m.nodes {
		if s.fed[k][j] && s.node[k].serves() {
			v.source = "alive"
		}
	}
	return v
}

func (m *protocolModel) ballot(s *modelState, i int) ballot {
	x := &s.node[i]
	b := ballot{
		Version: protocolVersion, Mirror: modelHistory, Candidate: memberID{byte(i + 1)}, List: m.list,
		Position: position{s.generation(s.newest(i), 0), journal.LSN(x.n)},
	}
	if x.asking > 0 {
		b.Proposed = s.generation(x.asking, 0)
	}
	return b
}

// vote: j answers candidate i; no record of an older generation is taken after it has given its word.
func (m *protocolModel) vote(s *modelState, i, j int) bool {
	v, b := m.voter(s, j), m.ballot(s, i)
	if v.answer(&b) != granted {
		return false
	}
	y := &s.node[j]
	y.dur, y.seen = y.n, s.node[i].asking
	for k := range m.nodes {
		s.fed[k][j] = false
	}
	s.node[i].votes |= 1 << j
	return true
}

// stand: i polls the others and, when that is enough, gives itself its word.
func (m *protocolModel) stand(s *modelState, i int) bool {
	x := &s.node[i]
	v := m.voter(s, i)
	if v.source != "" || v.serves {
		return false
	}
	e := newElection(m.nodes, v.seen)
	b := m.ballot(s, i)
	for j := range m.nodes {
		if j != i && s.reach(i, j) {
			o := m.voter(s, j)
			e.count(o.answer(&b), o.seen)
		}
	}
	if !e.won() || int(s.gens) >= modelGens || x.n >= modelLog {
		return false
	}
	x.asking, x.votes = s.gens, 0
	s.gens++
	s.gen[x.asking] = modelGen{uint8(e.proposal([16]byte{1}).Major), 0}
	return m.vote(s, i, i)
}

// elected: i has enough words, and still its own.
func (m *protocolModel) elected(s *modelState, i int) bool {
	x := &s.node[i]
	e := newElection(m.nodes, s.generation(x.seen, 0))
	for j := range m.nodes {
		if j != i && x.votes&(1<<j) != 0 {
			e.count(granted, journal.Generation{})
		}
	}
	return e.won() && mayBegin(s.generation(x.seen, 0), s.generation(x.asking, 0))
}

// answerFlush notes what a FLUSH was answered for while a target counts.
func (m *protocolModel) answerFlush(s *modelState, i int, lsn uint8) {
	x := &s.node[i]
	for k := range m.nodes {
		if k == i || !s.node[k].prim || compareRank(s.generation(s.node[k].own, 0), s.generation(x.own, 0)) <= 0 {
			continue
		}
		for at := range lsn {
			if !m.forced && s.node[k].log[at] != x.log[at] {
				m.wrong = fmt.Sprintf("%d, which %d has replaced, answered a FLUSH for what that one has not got", i, k)
				return
			}
		}
		return
	}
	s.flushed = [modelLog]uint8{}
	copy(s.flushed[:lsn], x.log[:lsn])
	s.nflush, s.flushBy = lsn, x.own
}

func (m *protocolModel) has(s *modelState, i int) bool {
	x := &s.node[i]
	return x.dur >= s.nflush && [modelLog]uint8(append(append([]uint8{}, x.log[:s.nflush]...), make([]uint8, modelLog-int(s.nflush))...)) == s.flushed
}

// check looks for what must never be.
func (m *protocolModel) check(s *modelState) string {
	best := -1
	for i := range m.nodes {
		x := &s.node[i]
		if x.touched > x.n {
			return fmt.Sprintf("the device of %d has %d records, its log %d: what it applied was cut", i, x.touched, x.n)
		}
		if x.prim && (best < 0 || compareRank(s.generation(x.own, 0), s.generation(s.node[best].own, 0)) > 0) {
			best = i
		}
		for j := range m.nodes {
			y := &s.node[j]
			if j != i && x.prim && y.prim && compareRank(s.generation(x.own, 0), s.generation(y.own, 0)) == 0 && !m.forced {
				return fmt.Sprintf("%d and %d are both primary of generation %s", i, j, rankString(s.generation(x.own, 0)))
			}
			if s.fed[i][j] && y.stager == 0 {
				if y.n > x.n || x.chain(journal.LSN(y.n)) != y.chain(journal.LSN(y.n)) {
					return fmt.Sprintf("the log of %d is no part of that of %d, which feeds it", j, i)
				}
			}
		}
		if w := &s.word[i]; x.serves() && w.standing == isCounting {
			a := w.members[w.active]
			if !modelFollower[s.follower[i][w.active]].counts() || a.durable < w.answered {
				return fmt.Sprintf("%d counts at %d: it is %s, durable up to %d, and %d was answered for", w.active, i, modelFollower[s.follower[i][w.active]], a.durable, w.answered)
			}
		}
	}
	if best >= 0 && compareRank(s.generation(s.node[best].own, 0), s.generation(s.flushBy, 0)) >= 0 && !m.has(s, best) {
		return fmt.Sprintf("%d, the primary of the highest generation, lacks what a FLUSH was answered for", best)
	}
	return ""
}

// search returns what it found wrong, and the way there.
func (m *protocolModel) search() (wrong string, way []modelStep) {
	m.taken = map[string]int{}
	m.seed, m.known = maphash.MakeSeed(), make(map[uint64]struct{}, m.states)
	m.order = make([]modelState, 0, m.states+1024)
	s := m.start()
	m.add(s, modelStep{"start", 0, 0, 0})
	for m.now = 0; int(m.now) < len(m.order) && len(m.order) < m.states && m.wrong == ""; m.now++ {
		m.next()
	}
	if m.wrong == "" {
		return "", nil
	}
	for i := int32(len(m.order) - 1); i > 0; i = m.from[i] {
		way = append([]modelStep{m.step[i]}, way...)
	}
	return m.wrong, way
}

// add takes a state that may come next; what is wrong with it ends the search.
func (m *protocolModel) add(s *modelState, x modelStep) {
	for j := range m.nodes { // a copy ends with its session
		if y := &s.node[j]; y.stager > 0 && !s.fed[y.stager-1][j] {
			y.stager, y.staged, y.copied = 0, 0, false
		}
	}
	m.taken[x.what]++
	h := maphash.Comparable(m.seed, *s)
	if _, ok := m.known[h]; ok && m.wrong == "" {
		return
	}
	m.known[h] = struct{}{}
	m.order, m.from, m.step = append(m.order, *s), append(m.from, m.now), append(m.step, x)
	if m.wrong == "" {
		m.wrong = m.check(s)
	}
}

// modelSizes are how far the search goes; MIRROR_AGENT_MODEL is how many states at most in each.
func modelSizes(t *testing.T) []modelBounds {
	t.Helper()
	limit := 420_000
	if raceEnabled || testing.Short() {
		limit = 20_000
	}
	if v := os.Getenv("MIRROR_AGENT_MODEL"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1000 {
			t.Fatalf("MIRROR_AGENT_MODEL=%q: give a number of states, at least 1000", v)
		}
		limit = n
	}
	return []modelBounds{
		{nodes: 2, writes: 2, faults: 3, promotions: 2, states: limit},
		{nodes: 3, writes: 1, faults: 1, promotions: 2, states: limit},
		{nodes: 3, writes: 2, faults: 2, promotions: 1, states: limit},
		{nodes: 3, writes: 1, faults: 1, promotions: 2, forced: true, states: limit / 4},
		{nodes: 2, writes: 2, faults: 2, promotions: 1, replaced: true, states: limit},
		{nodes: 3, writes: 2, faults: 1, promotions: 1, replaced: true, states: limit},
	}
}

// modelKinds are all steps there are: a search that never takes one shows nothing of it.
var modelKinds = []string{
	"start", "restart", "fdatasync", "apply", "write", "flush", "expire", "switch", "notice the loss", "unreachable", "connect", "rejoin",
	"receive", "declare", "acknowledge", "stream to the copy", "all is copied", "take over", "stand", "vote", "promote by majority",
	"promote by order", "down, keeps", "cut off", "back on the network",
}

// TestProtocolModel: no order of events within the bounds breaks a guarantee.
func TestProtocolModel(t *testing.T) {
	all, kinds := 0, map[string]int{}
	for _, b := range modelSizes(t) {
		m := &protocolModel{modelBounds: b}
		began := time.Now()
		wrong, way := m.search()
		if wrong != "" {
			text := ""
			for _, x := range way {
				text += "\n  " + x.String()
			}
			t.Fatalf("%+v: after %d states: %s%s", b, len(m.order), wrong, text)
		}
		reach := "all of them"
		if len(m.order) >= b.states {
			reach = "the first"
		}
		t.Logf("%+v: %d states, %s, in %s", b, len(m.order), reach, time.Since(began).Round(time.Millisecond))
		all += len(m.order)
		for what, n := range m.taken {
			kinds[what] += n
		}
	}
	t.Logf("%d states", all)
	for _, what := range modelKinds {
		if kinds[what] == 0 {
			t.Errorf("no search has taken %q", what)
		}
	}
	t.Log(kinds)
}
