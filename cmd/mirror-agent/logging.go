package main

import (
	"fmt"
	"time"

	"github.com/rs/zerolog"
)

const (
	logConsole = "console"
	logJSON    = "json"
)

func parseLogFormat(w string) (string, error) {
	if w != logConsole && w != logJSON {
		return "", fmt.Errorf("unknown log format %q: choose console or json", w)
	}
	return w, nil
}

func parseLevel(w string) (zerolog.Level, error) {
	switch l, err := zerolog.ParseLevel(w); {
	case err == nil && l >= zerolog.DebugLevel && l <= zerolog.ErrorLevel:
		return l, nil
	}
	return 0, fmt.Errorf("unknown log level %q: choose debug, info, warn or error", w)
}

// newLogger writes to stderr: stdout is for what a command was asked for.
func newLogger(a *app, s *settings) zerolog.Logger {
	out := zerolog.SyncWriter(a.stderr) // one line at a time, whoever writes
	log := zerolog.New(out)
	if s.logFormat == logConsole {
		log = zerolog.New(zerolog.ConsoleWriter{Out: out, NoColor: !a.logColour, TimeFormat: time.DateTime + ".000"})
	}
	return log.Level(s.logLevel).With().Timestamp().Logger()
}
