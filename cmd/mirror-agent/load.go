package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"mirror-agent/mirror"
)

const envPrefix = "MIRROR_AGENT"

// addDaemonFlags gives a command all settings of a daemon and --config.
func addDaemonFlags(fs *pflag.FlagSet) {
	for _, k := range keys {
		k.flag(fs, k)
	}
	fs.String("config", "", "YAML `FILE` with the same keys; flags and MIRROR_AGENT_* come first")
}

// loader finds every setting: flags, then the environment, then the file.
type loader struct {
	flags *pflag.FlagSet
	env   func(string) string
	file  *yamlFile // nil without --config
	viper *viper.Viper
}

// newLoader reads the file that --config or MIRROR_AGENT_CONFIG names.
func newLoader(a *app, flags *pflag.FlagSet) (*loader, error) {
	l := &loader{flags: flags, env: a.env, viper: viper.New()}
	l.viper.SetConfigType("yaml")
	path, err := flags.GetString("config")
	if err != nil {
		return nil, err
	}
	if path == "" {
		path = a.env(envName("config"))
	}
	if path != "" {
		if l.file, err = readYAML(path); err != nil {
			return nil, err
		}
		if err := l.viper.ReadConfig(bytes.NewReader(l.file.content)); err != nil {
			return nil, fmt.Errorf("config %s: %w", path, err)
		}
	}
	for _, k := range keys {
		if err := l.viper.BindPFlag(k.name, flags.Lookup(k.name)); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func envName(key string) string {
	return envPrefix + "_" + strings.ToUpper(strings.ReplaceAll(key, "-", "_"))
}

// load returns the settings for the role of the command; zero lets the file
// say the role.
func (l *loader) load(role mirror.Role) (settings, error) {
	s := defaultSettings()
	if err := l.role(&s, role); err != nil {
		return s, err
	}
	for _, k := range keys {
		words, where, err := l.words(k.name)
		if err != nil {
			return s, err
		}
		if words == nil {
			continue
		}
		if err := k.set(&s, words); err != nil {
			err = fmt.Errorf("%s: %w", where, err)
			if where == "--"+k.name { // the command line itself is wrong, not what it points at
				err = &usageError{err}
			}
			return s, err
		}
	}
	s.config.HotBackups = s.hotBackups()
	return s, l.fileHooks(&s)
}

func (l *loader) role(s *settings, role mirror.Role) error {
	s.config.Role = role
	word := l.env(envName(roleKey))
	where := envName(roleKey)
	if word == "" && l.file != nil && l.viper.InConfig(roleKey) {
		word, where = l.viper.GetString(roleKey), l.file.at(roleKey)
	}
	if word == "" {
		if role == 0 {
			return fmt.Errorf("config %s: no role; add \"role: source\" or \"role: target\"", l.file.path)
		}
		return nil
	}
	said, err := parseRole(word)
	if err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	if role != 0 && said != role {
		return fmt.Errorf("%s: role %s, but the command says otherwise; use mirror-agent run, or the command %s", where, word, word)
	}
	s.config.Role = said
	return nil
}

// words returns what was given for key and where, for an error; nil when
// nothing was.
func (l *loader) words(key string) (words []string, where string, err error) {
	f := l.flags.Lookup(key)
	env := l.env(envName(key))
	switch {
	case f.Changed:
		where = "--" + key
		if many, ok := f.Value.(pflag.SliceValue); ok {
			return many.GetSlice(), where, nil // as given: viper would read it as CSV
		}
	case env != "":
		return []string{env}, envName(key), nil
	case l.file != nil && l.file.lines[key] != 0:
		where = l.file.at(key)
		if !l.viper.InConfig(key) { // "key:" without a value
			return nil, where, fmt.Errorf("%s: %w", where, errNoValue)
		}
	default:
		return nil, "", nil
	}
	words, err = scalars(l.viper.Get(key))
	if err != nil {
		return nil, where, fmt.Errorf("%s: %w", where, err)
	}
	return words, where, nil
}

func (c *yamlFile) at(key string) string {
	return fmt.Sprintf("config %s:%d: %s", c.path, c.lines[key], key)
}

var errNoValue = errors.New("no value; give one or remove the line")

// scalars flattens a value of the file: a list has a word for each element, a
// list in a list (the addresses of one backup) is one word with commas.
func scalars(v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, errNoValue
	case map[string]any, map[any]any:
		return nil, errors.New("a value is expected, not further keys")
	case []any:
		var words []string
		for _, e := range v {
			inner, err := scalars(e)
			if err != nil {
				return nil, err
			}
			words = append(words, strings.Join(inner, ","))
		}
		if len(words) == 0 {
			return nil, errors.New("an empty list; give a value or remove the line")
		}
		return words, nil
	}
	return []string{fmt.Sprint(v)}, nil
}
