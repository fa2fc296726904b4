// For pages that are opened from files. There browsers start no worker, which the search needs: so its script runs in a
// hidden frame. From a server, a page has the browser's own workers.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(address) {
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.inside = frame.contentWindow;
      this.inside.postMessage = (data) => this.onmessage?.(new MessageEvent("message", { data }));
      this.isReady = new Promise((resolve) => {
        const script = frame.contentDocument.createElement("script");
        script.onload = resolve;
        script.onerror = () => this.onerror?.(new ErrorEvent("error", { cancelable: true }));
        script.src = new URL(address, location);
        frame.contentDocument.body.appendChild(script);
      });
    }
    async postMessage(data) {
      await this.isReady;
      this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data }));
    }
    terminate() {
      this.inside.frameElement.remove();
    }
  };
}
