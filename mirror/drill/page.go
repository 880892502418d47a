package drill

import (
	"crypto/sha256"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"

	"github.com/dustin/go-humanize"
)

// The report as one page that needs nothing else: pictures are SVG in it, colours follow the reader's light or dark.

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"seconds": seconds, "bytes": func(n int64) string { return humanize.IBytes(uint64(max(n, 0))) },
}).Parse(pageText))

const (
	pageWidth  = 760
	labelWidth = 230
	rowHeight  = 26
	plotHeight = 120
)

// WritePage writes the page of a report whose file, signed, is given too.
func WritePage(w io.Writer, r *Report, file []byte) error {
	_, key, err := Decode(file)
	if err != nil {
		return err
	}
	p := page{Report: r, Key: key, Sum: fmt.Sprintf("%x", sha256.Sum256(file)), File: r.FileName() + ".json", Width: pageWidth, Left: labelWidth}
	p.timeline()
	p.plots()
	return pageTemplate.Execute(w, &p)
}

type page struct {
	*Report
	Key, Sum, File string

	Width, Left, Height int
	Bars                []bar
	Ticks               []tick
	Plots               []plot
}

type bar struct {
	Step
	Y, TextY int
	X, W     float64
	Class    string
}

type tick struct {
	X    float64
	Text string
}

type plot struct {
	ID, Name, Points string
	Height           int
	Most             string
}

// x is where a time lies in the picture.
func (p *page) x(at float64) float64 {
	return round(labelWidth + at/max(p.Seconds, 1e-6)*(pageWidth-labelWidth-50))
}

func round(f float64) float64 { return math.Round(f*10) / 10 }

func (p *page) timeline() {
	for i, s := range p.Steps {
		b := bar{Step: s, Y: i*rowHeight + 4, TextY: i*rowHeight + 18, X: p.x(s.At), Class: "good"}
		b.W = max(2, round(p.x(s.At+s.Seconds)-b.X))
		if s.Error != "" {
			b.Class = "bad"
		}
		p.Bars = append(p.Bars, b)
	}
	p.Height = len(p.Steps)*rowHeight + 24
	for i := range 5 {
		at := p.Seconds * float64(i) / 4
		p.Ticks = append(p.Ticks, tick{p.x(at), seconds(at)})
	}
}

func (p *page) plots() {
	for _, k := range []struct {
		id, name string
		of       func(Sample) int64
	}{
		{"lag", "Not yet at the target, log", func(s Sample) int64 { return s.LagBytes }},
		{"unapplied", "Not applied yet on this host, log", func(s Sample) int64 { return s.UnappliedBytes }},
		{"scratch", "Scratch of the drill", func(s Sample) int64 { return s.ScratchBytes }},
	} {
		var most int64
		for _, s := range p.Samples {
			most = max(most, k.of(s))
		}
		if k.id == "scratch" && p.Moved != nil {
			continue
		}
		var points []string
		for _, s := range p.Samples {
			y := float64(plotHeight-10) - float64(k.of(s))/float64(max(most, 1))*(plotHeight-30)
			points = append(points, fmt.Sprintf("%.1f,%.1f", p.x(s.At), y))
		}
		p.Plots = append(p.Plots, plot{ID: k.id, Name: k.name, Points: strings.Join(points, " "), Height: plotHeight, Most: humanize.IBytes(uint64(most))})
	}
}
