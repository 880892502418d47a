package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"

	"go.yaml.in/yaml/v3"
)

const maxConfigBytes = 1 << 20

// yamlFile is a configuration file whose keys are known to be good.
type yamlFile struct {
	path    string
	content []byte
	lines   map[string]int // line of each key
}

// readYAML reads a configuration file and refuses keys that do not exist or
// stand there twice, naming the line.
func readYAML(path string) (*yamlFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("config %w", err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, fmt.Errorf("config %w", err)
	}
	if len(content) > maxConfigBytes {
		return nil, fmt.Errorf("config %s: longer than %s; is it the right file?", path, formatSize(int64(maxConfigBytes)))
	}
	c := &yamlFile{path: path, content: content, lines: map[string]int{}}
	return c, c.check()
}

func (c *yamlFile) check() error {
	var doc yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(c.content))
	if err := d.Decode(&doc); errors.Is(err, io.EOF) {
		return nil // an empty file sets nothing
	} else if err != nil {
		return c.syntaxError(err)
	}
	if err := d.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return fmt.Errorf("config %s: a second document; one file holds one mirror", c.path)
	}
	top := doc.Content[0]
	if top.Kind == yaml.ScalarNode && top.Tag == "!!null" {
		return nil
	}
	if top.Kind != yaml.MappingNode {
		return c.errorf(top.Line, `"key: value" lines are expected`)
	}
	names := keyNames()
	known := map[string]bool{}
	for _, n := range names {
		known[n] = true
	}
	for i := 0; i < len(top.Content); i += 2 {
		k := top.Content[i]
		if !known[k.Value] {
			return c.errorf(k.Line, "unknown key %q%s", k.Value, didYouMean(k.Value, names))
		}
		if first, twice := c.lines[k.Value]; twice {
			return c.errorf(k.Line, "key %q was given already in line %d", k.Value, first)
		}
		c.lines[k.Value] = k.Line
	}
	return nil
}

func (c *yamlFile) errorf(line int, format string, args ...any) error {
	return fmt.Errorf("config %s:%d: %w", c.path, line, fmt.Errorf(format, args...))
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)

// syntaxError puts the line that yaml names where an editor looks for it.
func (c *yamlFile) syntaxError(err error) error {
	m := yamlLine.FindStringSubmatch(oneLine(err.Error()))
	switch {
	case m == nil:
		return fmt.Errorf("config %s: %w", c.path, err)
	case m[1] == "":
		return fmt.Errorf("config %s: %s", c.path, m[2])
	}
	return fmt.Errorf("config %s:%s: %s", c.path, m[1], m[2])
}
