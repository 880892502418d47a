package mirror

// Measures is what a monitoring system gets: the status, and what is too long for it.
type Measures struct {
	Status Status
	Volume VolumeStats // of about the same moment
}

// Measures may be called at any time from any goroutine. It costs what Status does and copies some kilobytes more.
func (a *Agent) Measures() Measures { return Measures{Status: a.Status(), Volume: a.v.Stats()} }
