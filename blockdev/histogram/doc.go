// Package histogram counts values into buckets of a fixed layout, from any number of goroutines, without a lock and
// without an allocation.
//
//	Recorder   what is counted into; the zero value is ready
//	Snapshot   what was counted up to some moment: mean, quantiles, cumulative counts, differences
//
// A value v ≥ 4 falls into the bucket of its highest bit and the two bits below, so the values of one bucket differ by less
// than a quarter. The last bucket takes all that is larger, which for nanoseconds begins at 4 hours.
//
// HdrHistogram for Go and the histograms of client_golang were looked at: the first counts without atomics and would need a
// mutex on the way of every append, the second costs several times as much for each value and cannot take n equal ones at once.
package histogram
