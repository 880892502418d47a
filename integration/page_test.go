package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

const pageToken = "a-token-of-the-test-0123456789"

// newBrowser starts a headless Chromium. What a page throws, and what its policy forbids it, is an error of the test.
func newBrowser(t *testing.T) context.Context {
	t.Helper()
	needTools(t, "chromium")
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath("chromium"), chromedp.NoSandbox,
		chromedp.UserDataDir(shortDir(t)), chromedp.WSURLReadTimeout(time.Minute))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx, chromedp.WithErrorf(t.Logf)) // it does not know all events of this Chromium
	chromedp.ListenTarget(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			t.Errorf("the page threw: %s", e.ExceptionDetails.Error())
		case *log.EventEntryAdded:
			if e.Entry.Source == log.SourceSecurity {
				t.Errorf("the page met its policy: %s", e.Entry.Text)
			}
		}
	})
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil { // waits for its end
			t.Log("end of the browser:", err)
		}
		cancel()
	})
	if err := chromedp.Run(ctx); err != nil { // the browser lives as long as the context of this first call
		t.Fatal(err)
	}
	return ctx
}

// do runs actions in the browser, which have to come to their end.
func do(t *testing.T, browser context.Context, what string, actions ...chromedp.Action) {
	t.Helper()
	ctx, cancel := context.WithTimeout(browser, startLimit)
	defer cancel()
	if err := chromedp.Run(ctx, actions...); err != nil {
		var text string
		chromedp.Run(browser, chromedp.Evaluate(`document.body.innerText`, &text))
		t.Fatalf("%s: %v\nthe page:\n%s", what, err, tailText(text, 4<<10))
	}
}

// shown waits until an expression is true in the page.
func shown(t *testing.T, browser context.Context, what, js string) {
	t.Helper()
	do(t, browser, what, chromedp.Poll(js, nil, chromedp.WithPollingInterval(20*time.Millisecond), chromedp.WithPollingTimeout(startLimit)))
}

const (
	wideScreen, wideHeight = 1280, 900
	phone, phoneHeight     = 390, 844
)

func awaitPromise(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }

// look has the page seen in a scheme and a size, once it has drawn itself so.
func look(scheme string, width, height int64) chromedp.Action {
	return chromedp.Tasks{
		chromedp.EmulateViewport(width, height),
		emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}),
		chromedp.Evaluate(`new Promise(r => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(r)), 200))`, nil, awaitPromise),
	}
}

// contrasts lists the texts whose contrast to what they lie on is below that of WCAG 2.2 AA.
const contrasts = `(() => {
	const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
	const rgba = (c) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); return canvas.getImageData(0, 0, 1, 1).data; };
	const light = (c) => { const [r, g, b] = [...c].slice(0, 3).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
	const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (rgba(c)[3] > 250) return rgba(c); } return rgba("white"); };
	const found = []; let n = 0;
	for (const w = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); w.nextNode();) {
		const e = w.currentNode.parentElement;
		if (!w.currentNode.data.trim() || !e.checkVisibility() || ["SCRIPT", "NOSCRIPT", "title"].includes(e.tagName)) continue;
		const style = getComputedStyle(e), a = light(rgba(e instanceof SVGElement ? style.fill : style.color)), b = light(ground(e));
		const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
		n++;
		if (ratio < 4.5) found.push(ratio.toFixed(2) + " " + w.currentNode.data.trim().slice(0, 40));
	}
	if (n < 40) found.push("only " + n + " texts were looked at");
	return [...new Set(found)];
})()`

// TestPage: the dashboard of a source in a browser: it asks for the token, shows a path going down and a switch-over that is
// ordered on it, and can be read by everybody.
func TestPage(t *testing.T) {
	browser := newBrowser(t)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(pageToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	address := freePort(t, "127.0.0.1")
	m := newMirror(t, layout{paths: 2, backup: true, sourceArgs: []string{"--http", address, "--http-token", token, "--http-control", "--retain-time", "1h"}}) // a drill may be at any point of the test
	m.start()
	m.source.until(startLimit, "both paths are active", func(s *status) bool { return activePaths(s) >= 2 })
	m.source.mustCommand("checkpoint", "create", "before-the-fault")

	do(t, browser, "sign in", look("light", wideScreen, wideHeight), chromedp.Navigate("http://"+address+"/"), chromedp.WaitVisible("#token"))
	do(t, browser, "a wrong token", chromedp.SendKeys("#token", "wrong\n"), chromedp.WaitVisible("#wrong"))
	do(t, browser, "the token", chromedp.SendKeys("#token", pageToken+"\n"), chromedp.WaitVisible("#topology svg"))
	shown(t, browser, "in sync", `document.querySelector("#state-word").textContent === "in sync"`)
	shown(t, browser, "the checkpoint", `document.querySelector("#checkpoints").textContent.includes("before-the-fault")`)

	shots := t.ArtifactDir()
	shoot := func(name string) {
		for _, scheme := range []string{"light", "dark"} {
			for _, size := range []struct {
				name   string
				w, h   int64
				scroll bool
			}{{"wide", wideScreen, wideHeight, false}, {"phone", phone, phoneHeight, false}} {
				var png []byte
				var tooWide bool
				var low []string
				what := fmt.Sprintf("%s-%s-%s", name, scheme, size.name)
				do(t, browser, what, look(scheme, size.w, size.h), chromedp.FullScreenshot(&png, 100),
					chromedp.Evaluate(`document.documentElement.scrollWidth > innerWidth`, &tooWide), chromedp.Evaluate(contrasts, &low))
				if err := os.WriteFile(filepath.Join(shots, what+".png"), png, 0o644); err != nil {
					t.Fatal(err)
				}
				if tooWide {
					t.Errorf("%s: the page is wider than the screen", what)
				}
				if len(low) > 0 {
					t.Errorf("%s: too little contrast:\n%s", what, strings.Join(low, "\n"))
				}
			}
		}
		do(t, browser, "back", look("light", wideScreen, wideHeight))
	}
	pageDrill(t, browser, m, shoot)

	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 8, 10)
	ld.untilAnswered(t, 300)
	shown(t, browser, "two paths carry data", `document.querySelectorAll("#topology .path.good").length === 2 && document.querySelectorAll("#topology .flow").length > 0`)
	shoot("well")
	do(t, browser, "the dialog of a drill", chromedp.Click("#order-drill-start"), chromedp.WaitVisible("#dialog-yes"))
	shoot("drill")
	do(t, browser, "do nothing", chromedp.Click("#dialog-no"), chromedp.WaitNotVisible("#dialog-yes"))

	// A path falls silent. The time that it takes to be shown is printed and judged by nobody: machines are slow.
	start := time.Now()
	m.toTarget[1].Blackhole(true)
	shown(t, browser, "a path is not well", `document.querySelectorAll("#topology .path.good").length === 1`)
	t.Logf("a path that fell silent was shown after %s (the agent knows after 0.2 s: suspect, 1 s: down)", time.Since(start).Round(time.Millisecond))
	shown(t, browser, "an alarm with its next step", `document.querySelector("#alarm-list").textContent.includes("path-down") && document.querySelector("#alarm-list .next") !== null`)
	shown(t, browser, "the event", `document.querySelector("#events").textContent.includes("path-down")`)
	shoot("path-down")
	ld.untilAnswered(t, 100)

	// The target dies; the flow is moved by the page.
	m.target.kill()
	shown(t, browser, "degraded", `document.querySelector("#state-word").textContent === "degraded" && document.querySelector("#announcer").textContent.length > 0`)
	checkNames(t, browser)
	do(t, browser, "the dialog", chromedp.Click("#order-switch"), chromedp.WaitVisible("#dialog-yes"))
	var dialog string
	do(t, browser, "what it says", chromedp.Text("#dialog-text", &dialog))
	if !strings.Contains(dialog, "until then a loss of this host loses") {
		t.Errorf("the dialog of a switch to a cold backup says %q", dialog)
	}
	checkNames(t, browser)
	shoot("switch")
	start = time.Now()
	do(t, browser, "the order", chromedp.Click("#dialog-yes"))
	shown(t, browser, "the new target is active", `[...document.querySelectorAll("#topology svg text")].some((e) => e.textContent === "backup, active")`)
	t.Logf("a switch-over was shown %s after it was ordered", time.Since(start).Round(time.Millisecond))
	shown(t, browser, "in sync again", `document.querySelector("#state-word").textContent === "in sync"`)
	if s := m.source.mustStatus(); s.follower("backup").State != streaming {
		t.Errorf("the page says in sync, the agent %s", s.brief())
	}
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	c.close()

	// The agent ends and comes back: the page tells, and goes on.
	m.source.stop()
	shown(t, browser, "no answer", `!document.querySelector("#stale").hidden`)
	m.source.start()
	do(t, browser, "sign in again: sessions end with the agent", chromedp.WaitVisible("#token"))
}

// pageDrill starts a drill on the page at its checkpoint, reads the device that the page names, and ends it there.
func pageDrill(t *testing.T, browser context.Context, m *testMirror, shoot func(name string)) {
	t.Helper()
	block := func(with byte) []byte { return bytes.Repeat([]byte{with}, ledgerBlock) }
	const at = 1 << 20
	put := func(with byte) {
		c := m.source.dial(startLimit)
		defer c.close()
		if err := c.write(at, block(with), true); err != nil {
			t.Fatal(err)
		}
	}
	put('a')
	m.source.mustCommand("checkpoint", "create", "drilled")
	put('b')
	shown(t, browser, "the checkpoint to drill at", `document.querySelector("#checkpoints").textContent.includes("drilled")`)
	var choices []string
	var dialog, label string
	do(t, browser, "the dialog", chromedp.Click("#order-drill-start"), chromedp.WaitVisible("#dialog-yes"),
		chromedp.Evaluate(`[...document.querySelector("#dialog-to").options].map((o) => o.value)`, &choices), chromedp.Text("#dialog-ask", &label),
		chromedp.SetValue("#dialog-to", "checkpoint:drilled"), chromedp.Evaluate(`document.querySelector("#dialog-to").onchange()`, nil), chromedp.Text("#dialog-text", &dialog))
	if len(choices) < 3 || choices[0] != "" || choices[1] != "checkpoint:drilled" || label != "At" {
		t.Errorf("a drill may be %s %q", label, choices)
	}
	if !strings.Contains(dialog, "as it was at drilled (LSN ") || !strings.Contains(dialog, "thrown away at the end") {
		t.Errorf("the dialog of a drill says %q", dialog)
	}
	if d := m.source.mustCommand("drill", "status"); !strings.Contains(d, "no drill since") {
		t.Fatalf("a drill began before its order: %s", d)
	}
	checkNames(t, browser)
	do(t, browser, "the order", chromedp.Click("#dialog-yes"), chromedp.WaitNotVisible("#dialog-yes"))
	address := strings.TrimPrefix(m.source.nbd, "unix:") + ".drill"
	shown(t, browser, "where it is shown", fmt.Sprintf(`document.querySelector("#device-facts").textContent.includes(%q)`, address))
	c, err := dialNBD("unix:"+address, mirrorName)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, ledgerBlock)
	if err := c.read(at, got); err != nil || !bytes.Equal(got, block('a')) {
		t.Errorf("the drill shows %q (%v), not what was there at its checkpoint", got[:8], err)
	}
	shoot("drill-runs")
	do(t, browser, "the dialog of its end", chromedp.Click("#order-drill-stop"), chromedp.WaitVisible("#dialog-yes"), chromedp.Text("#dialog-text", &dialog))
	if !strings.Contains(dialog, "Drill 1 at LSN ") || !strings.Contains(dialog, "lose their device") {
		t.Errorf("the dialog of its end says %q", dialog)
	}
	do(t, browser, "its end", chromedp.Click("#dialog-yes"), chromedp.WaitVisible("#order-drill-start"))
	if d := m.source.mustCommand("drill", "status", "--json"); !strings.Contains(d, "stopped from the page") {
		t.Errorf("the drill after its end: %s", d)
	}
	if err := c.read(at, got); err == nil {
		t.Error("it is still served")
	}
	c.close()
	shown(t, browser, "nothing of it", `!document.querySelector("#device-facts").textContent.includes("Shown at")`)
}

type axValue struct {
	Value any `json:"value"`
}

// checkNames: whatever can be operated or stands for something has a name for who does not see it.
func checkNames(t *testing.T, browser context.Context) {
	t.Helper()
	// Decoded here: the library's types know fewer words than this Chromium.
	var tree struct {
		Nodes []struct {
			Ignored bool    `json:"ignored"`
			Role    axValue `json:"role"`
			Name    axValue `json:"name"`
		} `json:"nodes"`
	}
	do(t, browser, "the accessibility tree", chromedp.ActionFunc(func(ctx context.Context) error {
		return cdp.Execute(ctx, "Accessibility.getFullAXTree", nil, &tree)
	}))
	seen := map[string]int{}
	for _, n := range tree.Nodes {
		role, name := fmt.Sprint(n.Role.Value), fmt.Sprint(n.Name.Value)
		if n.Ignored {
			continue
		}
		switch role {
		case "button", "link", "textbox", "checkbox", "combobox", "image", "region", "dialog", "group", "DisclosureTriangle":
			seen[role]++
			if n.Name.Value == nil || strings.TrimSpace(name) == "" {
				t.Errorf("a %s has no name", role)
			}
		}
	}
	if seen["button"] < 2 || seen["image"]+seen["dialog"] == 0 {
		t.Errorf("the tree holds %v", seen)
	}
}
