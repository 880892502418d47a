package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
	"mirror-agent/mirror/hook"
)

// Hooks come from --hook EVENT[,EVENT]=COMMAND, and from a list in the file:
//
//	hooks:
//	  - on: [promoted, alarm]
//	    run: [/usr/local/bin/page, --severity, high]
//	    timeout: 30s
const hooksKey = "hooks"

func setHooks(s *settings, words []string) error {
	for _, w := range words {
		h, err := hook.Parse(w)
		if err != nil {
			return err
		}
		s.hooks = append(s.hooks, h)
	}
	return nil
}

// fileHooks adds those of the file's list.
func (l *loader) fileHooks(s *settings) error {
	if l.file == nil || l.file.lines[hooksKey] == 0 {
		return nil
	}
	where := l.file.at(hooksKey)
	list, ok := l.viper.Get(hooksKey).([]any)
	if !ok || len(list) == 0 {
		return fmt.Errorf("%s: a list is expected, of elements with on, run and timeout", where)
	}
	for i, e := range list {
		h, err := fileHook(e)
		if err != nil {
			return fmt.Errorf("%s: element %d: %w", where, i+1, err)
		}
		s.hooks = append(s.hooks, h)
	}
	return nil
}

func fileHook(e any) (h hook.Hook, err error) {
	fields, ok := e.(map[string]any)
	if !ok {
		return h, errors.New("on, run and timeout are expected")
	}
	names := []string{"on", "run", "timeout"}
	for k, v := range fields {
		if !slices.Contains(names, k) {
			return h, fmt.Errorf("unknown key %q%s", k, didYouMean(k, names))
		}
		words, err := scalars(v)
		if err != nil {
			return h, fmt.Errorf("%s: %w", k, err)
		}
		switch k {
		case "on":
			h.On = words
		case "run":
			if h.Run = words; isText(v) {
				return h, errors.New(`run: a list is expected, the program and each argument, like [/bin/sh, -c, "…"]`)
			}
		case "timeout":
			if len(words) != 1 {
				return h, errors.New("timeout: one value is expected")
			}
			if h.Timeout, err = parseDuration(words[0]); err != nil {
				return h, err
			}
			if h.Timeout == 0 {
				return h, errors.New("timeout: more than 0")
			}
		}
	}
	return h, h.Validate()
}

func isText(v any) bool {
	_, isList := v.([]any)
	return !isList && strings.ContainsAny(fmt.Sprint(v), " \t")
}

// runHooks follows the agent's events; what it returns ends that, when the agent has ended.
func runHooks(r *hook.Runner) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx) }()
	return func() { cancel(); <-done }
}

// measuredAgent is an agent whose hooks are counted with it.
type measuredAgent struct {
	*mirror.Agent
	hooks *hook.Runner
}

// HookRuns implements control.Hooked.
func (m measuredAgent) HookRuns() []control.HookRuns {
	var all []control.HookRuns
	for _, c := range m.hooks.Counts() {
		all = append(all, control.HookRuns(c))
	}
	return all
}
