package journal

import (
	"slices"
	"sort"
	"sync"
)

// indexSpacing is how far apart the points are that the index keeps, bytes of log.
const indexSpacing = 256 << 10

// point is a record boundary and the chain value there (of the record before it).
type point struct {
	at    LSN
	chain uint64
}

// index is a sparse, ordered list of record boundaries between tail and head. The tail is always in it.
type index struct {
	imu    sync.Mutex // guards points
	points []point
}

func (x *index) reset(p point) {
	x.imu.Lock()
	x.points = append(x.points[:0], p)
	x.imu.Unlock()
}

// add puts p in its place, unless another is near.
func (x *index) add(p point) {
	x.imu.Lock()
	defer x.imu.Unlock()
	i := sort.Search(len(x.points), func(i int) bool { return x.points[i].at >= p.at })
	if i == 0 || x.points[i-1].at+indexSpacing > p.at || (i < len(x.points) && x.points[i].at < p.at+indexSpacing) {
		return
	}
	x.points = slices.Insert(x.points, i, p)
}

// force adds p, above all others, however near.
func (x *index) force(p point) {
	x.imu.Lock()
	defer x.imu.Unlock()
	if p.at > x.points[len(x.points)-1].at {
		x.points = append(x.points, p)
	}
}

// newest is the last point's LSN.
func (x *index) newest() LSN {
	x.imu.Lock()
	defer x.imu.Unlock()
	return x.points[len(x.points)-1].at
}

// before is the greatest point ≤ at.
func (x *index) before(at LSN) (point, bool) {
	x.imu.Lock()
	defer x.imu.Unlock()
	i := sort.Search(len(x.points), func(i int) bool { return x.points[i].at > at })
	if i == 0 {
		return point{}, false
	}
	return x.points[i-1], true
}

// trim makes tail the first point.
func (x *index) trim(tail point) {
	x.imu.Lock()
	defer x.imu.Unlock()
	i := sort.Search(len(x.points), func(i int) bool { return x.points[i].at > tail.at })
	if i == 0 {
		return
	}
	x.points = slices.Delete(x.points, 0, i-1)
	x.points[0] = tail
}

// truncate drops the points above to.
func (x *index) truncate(to LSN) {
	x.imu.Lock()
	defer x.imu.Unlock()
	i := sort.Search(len(x.points), func(i int) bool { return x.points[i].at > to })
	x.points = x.points[:max(i, 1)]
}
