package drill

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"
)

// TestPage: the page is whole, says what the report says, runs nothing that was in an output, and asks nobody for anything.
func TestPage(t *testing.T) {
	r := aReport()
	file, err := Encode(r, aKey(1))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := WritePage(&b, r, file); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, want := range []string{
		`<html lang="en">`, "Drill of vol0 (nightly)", "database: exit status 1", "fsck &lt;ext4&gt; &amp; &#34;more&#34;", "12.50 s", "prefers-color-scheme: dark",
		"&lt;script&gt;alert(1)&lt;/script&gt;", KeyName(public(aKey(1))), "fra2", `aria-labelledby="timeline-title"`, "<polyline points=\"",
		"--verify drill-vol0-nightly-20261122T030000Z.json",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, bad := range []*regexp.Regexp{
		regexp.MustCompile(`(?i)<script`), regexp.MustCompile(`(?i)\b(src|href)=`), regexp.MustCompile(`(?i)url\(`), regexp.MustCompile(`https?://`), regexp.MustCompile(`(?i)@import`),
		regexp.MustCompile(`ZgotmplZ`),
	} {
		if m := bad.FindString(page); m != "" {
			t.Errorf("the page has %q", m)
		}
	}
	// Pictures: each has a name, and all is nested as it should be.
	d := xml.NewDecoder(strings.NewReader(page))
	d.Strict, d.AutoClose, d.Entity = false, append(xml.HTMLAutoClose, "meta"), xml.HTMLEntity
	pictures := 0
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := tok.(xml.StartElement); ok && e.Name.Local == "svg" {
			pictures++
			attrs := map[string]string{}
			for _, a := range e.Attr {
				attrs[a.Name.Local] = a.Value
			}
			if attrs["role"] != "img" || !strings.Contains(page, `<title id="`+attrs["aria-labelledby"]+`">`) {
				t.Errorf("a picture without a name: %v", attrs)
			}
		}
	}
	if pictures != 4 {
		t.Errorf("%d pictures", pictures)
	}
}
