package mirror

import (
	"time"

	"github.com/dustin/go-humanize"
)

// tellPreparing returns what a new journal's progress is told to: it logs how long the rest will take when that is not done in
// a second, and again now and then.
func (c *Config) tellPreparing(path string) func(done, total int64) {
	began := time.Now()
	next := time.Second
	return func(done, total int64) {
		since := time.Since(began)
		if since < next || done == total {
			return
		}
		next = since + 10*time.Second
		rest := time.Duration(float64(since) * float64(total-done) / float64(done))
		c.Log.Info().Str("mirror", c.Name).Str("journal", path).Dur("left", rest.Round(time.Second)).
			Msgf("writing the new journal: %s of %s, %v left", humanize.IBytes(uint64(done)), humanize.IBytes(uint64(total)), rest.Round(time.Second))
	}
}
