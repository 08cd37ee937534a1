package server

import "sync"

// gather runs a number of small questions to the driver side by side and keeps their answers.
type gather struct {
	slots chan struct{}
	wg    sync.WaitGroup

	mu      sync.Mutex // guards the rest
	answers []any
	err     error
}

func newGather(width int) *gather { return &gather{slots: make(chan struct{}, width)} }

// run asks one question, waiting for a free place. A nil answer is not kept; after an error no more questions are asked.
func (g *gather) run(ask func() (any, error)) {
	g.slots <- struct{}{}
	g.mu.Lock()
	failed := g.err != nil
	g.mu.Unlock()
	if failed {
		<-g.slots
		return
	}
	g.wg.Go(func() {
		defer func() { <-g.slots }()
		answer, err := ask()
		g.mu.Lock()
		defer g.mu.Unlock()
		if err != nil && g.err == nil {
			g.err = err
		}
		if answer != nil {
			g.answers = append(g.answers, answer)
		}
	})
}

func (g *gather) wait() ([]any, error) {
	g.wg.Wait()
	return g.answers, g.err
}
